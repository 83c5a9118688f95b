"""Encryption on the way to the next hop.
Standard: RFC 3207, RFC 7435; "required" lets nothing leave before chain and name were verified.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from relay.errors import ConfigError, NextHopUnavailable
from tests.integration.forward.conftest import Build
from tests.integration.forward.mails import BIG, TEXT, mail
from tests.testlib.hop import EVERYTHING, Hop

Server = Callable[..., ssl.SSLContext]


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca(authority: trustme.CA, tmp_path: Path) -> Path:
    authority.cert_pem.write_to_path(path := tmp_path / "ca.pem")
    return path


@pytest.fixture
def server(authority: trustme.CA) -> Server:
    """Makes a server's TLS settings, its certificate being for `name`."""

    def make(name: str = "127.0.0.1", by: trustme.CA = authority) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        by.issue_cert(name).configure_cert(context)
        return context

    return make


async def test_required_hands_over_where_chain_and_name_are_right(build: Build, server: Server, ca: Path) -> None:
    async with Hop(tls=server()) as hop:
        next_hop = build(hop, next_hop_tls="required", next_hop_ca=ca)
        for _ in range(2):
            assert (await next_hop.deliver(mail(message=BIG))).outcomes == (None,)
    assert hop.commands[:4] == [
        "EHLO relay.example", "STARTTLS", "EHLO relay.example", f"MAIL FROM:<ann@alice.example> SIZE={len(BIG)}"
    ]  # fmt: skip
    assert [got.message for got in hop.got] == [BIG, BIG]
    assert len(hop.connections) == 1


async def test_required_takes_the_name_that_is_set(build: Build, server: Server, ca: Path) -> None:
    async with Hop(tls=server("mail.bob.example")) as hop:
        right = build(hop, next_hop_tls="required", next_hop_ca=ca, next_hop_tls_name="mail.bob.example")
        assert (await right.deliver(mail())).outcomes == (None,)
        wrong = build(hop, next_hop_tls="required", next_hop_ca=ca, next_hop_tls_name="mail.eve.example")
        with pytest.raises(NextHopUnavailable, match="certificate verify failed"):
            await wrong.deliver(mail())
    assert len(hop.got) == 1


@pytest.mark.promise("No password, token or mail goes to a server other than the one named")
@pytest.mark.parametrize(
    ("name", "ours", "expected"),
    [("localhost", True, "certificate verify failed"), ("127.0.0.1", False, "certificate verify failed")],
)
async def test_required_holds_the_mail_where_name_or_chain_are_wrong(
    build: Build, server: Server, ca: Path, authority: trustme.CA, name: str, ours: bool, expected: str
) -> None:
    async with Hop(tls=server(name, authority if ours else trustme.CA())) as hop:
        with pytest.raises(NextHopUnavailable, match=expected):
            await build(hop, next_hop_tls="required", next_hop_ca=ca).deliver(mail())
    assert not any("MAIL" in command for command in hop.commands)


async def test_required_with_the_systems_cas_does_not_trust_an_unknown_one(build: Build, server: Server) -> None:
    async with Hop(tls=server()) as hop:
        with pytest.raises(NextHopUnavailable, match="certificate verify failed"):
            await build(hop, next_hop_tls="required").deliver(mail())


async def test_required_holds_the_mail_where_no_tls_is_offered_and_tries_the_next(
    build: Build, server: Server, ca: Path
) -> None:
    async with Hop() as hop, Hop(tls=server()) as other:
        with pytest.raises(NextHopUnavailable, match="offers none"):
            await build(hop, next_hop_tls="required", next_hop_ca=ca).deliver(mail())
        handed = await build(hop, other, next_hop_tls="required", next_hop_ca=ca).deliver(mail())
    assert handed.next_hop == str(other.address)
    assert not any("MAIL" in command for command in hop.commands)


@pytest.mark.parametrize("said", ["454 4.7.0 not now", "502 5.5.1 what?"])
async def test_a_server_that_offers_tls_and_does_not_begin_it_gets_mail_only_where_it_is_not_required(
    build: Build, server: Server, ca: Path, said: str
) -> None:
    async with Hop(tls=server(), instead={"STARTTLS": said}) as hop:
        with pytest.raises(NextHopUnavailable, match=said):
            await build(hop, next_hop_tls="required", next_hop_ca=ca).deliver(mail())
        assert not hop.got
        await build(hop, next_hop_tls="opportunistic").deliver(mail())
    assert len(hop.got) == 1


async def test_opportunistic_encrypts_where_it_can_whatever_the_certificate(build: Build, server: Server) -> None:
    async with Hop(tls=server("mail.eve.example")) as hop, Hop() as plain:
        await build(hop, next_hop_tls="opportunistic").deliver(mail())
        await build(plain, next_hop_tls="opportunistic").deliver(mail())
    assert hop.commands[1] == "STARTTLS"
    assert (len(hop.got), len(plain.got)) == (1, 1)


async def test_opportunistic_does_not_go_back_to_clear_once_tls_has_begun(build: Build, server: Server) -> None:
    async with Hop(tls=server(), instead={"STARTTLS": b"220 go on\r\n"}) as hop:
        with pytest.raises(NextHopUnavailable):  # what it answers to the handshake is no TLS
            await build(hop, next_hop_tls="opportunistic").deliver(mail())
    assert not any("MAIL" in command for command in hop.commands)


@pytest.mark.parametrize("mode", ["none", "auto"])
async def test_on_loopback_nothing_is_encrypted_unless_it_is_asked_for(build: Build, server: Server, mode: str) -> None:
    async with Hop(tls=server()) as hop:
        await build(hop, next_hop_tls=mode).deliver(mail())
    assert "STARTTLS" not in hop.commands
    assert hop.got[0].message == TEXT


async def test_what_the_server_offers_is_asked_anew_under_tls(build: Build, server: Server) -> None:
    async with Hop((*EVERYTHING, "XFORWARD ADDR"), tls=server()) as hop:
        hop.instead["EHLO"] = ["", "250-hop.example\r\n250 8BITMIME"]
        await build(hop, next_hop_tls="opportunistic").deliver(mail())
    assert hop.commands[3] == "MAIL FROM:<ann@alice.example>"


async def test_what_was_sent_in_clear_behind_the_reply_to_starttls_is_never_read(build: Build, server: Server) -> None:
    forged = b"220 2.0.0 go on\r\n250-hop.example\r\n250 XFORWARD ADDR\r\n"
    async with Hop(tls=server(), instead={"STARTTLS": forged}) as hop:
        with pytest.raises(NextHopUnavailable):
            await build(hop, next_hop_tls="opportunistic").deliver(mail())
    assert hop.commands == ["EHLO relay.example", "STARTTLS"]


async def test_tls_before_1_2_is_not_spoken(build: Build, server: Server) -> None:
    context = server()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    async with Hop(tls=context) as hop:
        with pytest.raises(NextHopUnavailable, match="TLS"):
            await build(hop, next_hop_tls="opportunistic").deliver(mail())
    assert not hop.got


async def test_a_handshake_that_does_not_end_is_given_up_in_time(build: Build, impatient: None) -> None:
    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in (b"220 hop\r\n", b"250-hop\r\n250 STARTTLS\r\n", b"220 go on\r\n"):
            writer.write(reply)
            await reader.readline()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(stall, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        with pytest.raises(NextHopUnavailable, match="TLS"):
            await build(f"127.0.0.1:{port}", next_hop_tls="opportunistic").deliver(mail())


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_ca_file_that_cannot_be_used_is_a_fault_of_the_configuration(
    build: Build, tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match="next_hop_ca"):
        build("127.0.0.1:25", next_hop_tls="required", next_hop_ca=path)


def test_a_fifo_in_place_of_the_ca_file_is_not_waited_for(build: Build, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ca.pem")
    with pytest.raises(ConfigError, match=f"next_hop_ca: .*{tmp_path}/ca.pem.*: not a regular file"):
        build("127.0.0.1:25", next_hop_tls="required", next_hop_ca=tmp_path / "ca.pem")
