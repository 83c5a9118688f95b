"""One message to recipients at several peers and levels: each group once, none stops another, nobody sees a Bcc.
Standard: RFC 5321 7.2 (blind copies), RFC 5322 3.6.3; all is seen from outside, over SMTP.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import aiosmtplib
import pytest

from relay.config import TCPAddress
from relay.formats import cms, mime
from relay.forward import stuffed
from tests.testlib import mails
from tests.testlib.identities import Identities
from tests.testlib.sink import Got
from tests.testlib.submit import SMTPReply, submit
from tests.testlib.three_sites import ThreeSites, three_sites

POLICIES = {
    "default.toml": 'levels = ["aes"]\n',
    "open.example.toml": 'levels = ["plaintext"]\n',
    "bob.example/otto.toml": 'levels = ["otp"]\n',
    "bob.example/max.toml": 'levels = ["aes"]\notherwise = "refuse"\nmax_size = { aes = "100 B" }\n',
    "carol.example/rosa.toml": 'levels = ["pqc+aes", "pqc"]\notherwise = "refuse"\n',
}
BEN, BEA, OTTO, MAX = (f"{name}@bob.example" for name in ("ben", "bea", "otto", "max"))
CARL, CLEO, ROSA = (f"{name}@carol.example" for name in ("carl", "cleo", "rosa"))
PRESS = "press@open.example"
MANY = [BEN, CARL, OTTO, PRESS, BEA, CLEO]
MESSAGE = mails.plain().replace(
    b"To: Ben <ben@bob.example>\r\n", b"To: ben@bob.example, carl@carol.example\r\nCc: otto@bob.example\r\n"
)


@pytest.fixture
async def sites(tmp_path: Path) -> AsyncIterator[ThreeSites]:
    async with three_sites(tmp_path, POLICIES) as running:
        yield running


def groups(got: list[Got]) -> set[tuple[str, ...]]:
    """Who got a mail together."""
    found = [each.recipients for each in got]
    assert len(found) == len(set(found))
    return set(found)


async def replies_to_each(relay: TCPAddress, message: bytes, recipients: list[str]) -> list[SMTPReply]:
    """What is said to each RCPT, and then to the content."""
    client = aiosmtplib.SMTP(
        hostname=relay.host, port=relay.port, local_hostname="client.example", start_tls=False, timeout=60
    )
    await client.connect()
    try:
        await client.ehlo()
        said = []
        for command in ("MAIL FROM:<ann@alice.example>", *(f"RCPT TO:<{each}>" for each in recipients), "DATA"):
            reply = await client.execute_command(command.encode())
            said.append(SMTPReply(reply.code, reply.message))
        assert client.protocol is not None
        client.protocol.write(b"".join(stuffed(message)))
        reply = await client.protocol.read_response(timeout=60)
        return [*said[1:-1], SMTPReply(reply.code, reply.message)]
    finally:
        client.close()


async def open_all(sites: ThreeSites, got: list[Got]) -> dict[tuple[str, ...], bytes]:
    """What the recipients of each mail on the network find in their mailboxes, by recipients."""
    for each in got:
        for name, relay in sites.incoming.items():
            if each.recipients[0].endswith(f"@{name}.example"):
                reply = await submit(relay, each.message, sender=each.sender, recipients=each.recipients)
                assert reply.code == 250
    return {each.recipients: mails.untraced(each.message) for each in sites.mailboxes.got}


# --- each group once -----------------------------------------------------------------------------------


async def test_each_peer_and_level_gets_one_sealed_mail_under_its_own_key(sites: ThreeSites) -> None:
    assert (await submit(sites.outgoing, MESSAGE, recipients=MANY)).code == 250
    got = sites.network.got
    assert groups(got) == {(BEN, BEA), (OTTO,), (CARL, CLEO), (PRESS,)}
    sealed = [each for each in got if each.recipients != (PRESS,)]
    assert all(mime.is_sealed(each.message) and b"figures" not in each.message for each in sealed)
    pads = [pad for pad in map(pad_of, sealed) if pad is not None]
    assert sites.keys_issued() == 2 + sum(len(pad.key_IDs) for pad in pads)
    opened = await open_all(sites, sealed)
    assert set(opened) == {(BEN, BEA), (OTTO,), (CARL, CLEO)}
    assert {each.partition(b"\r\n")[2] for each in opened.values()} == {MESSAGE}


def pad_of(got: Got) -> cms.PadContent | None:
    """The one-time pad of a sealed mail, if it has one."""
    content = cms.decode_enveloped(mime.sealed_content(got.message)).content
    return content if isinstance(content, cms.PadContent) else None


async def test_the_order_of_recipients_changes_no_group(sites: ThreeSites) -> None:
    for recipients in (MANY, MANY[::-1], [*MANY[3:], *MANY[:3]]):
        before = len(sites.network.got)
        assert (await submit(sites.outgoing, MESSAGE, recipients=recipients)).code == 250
        assert {frozenset(each) for each in groups(sites.network.got[before:])} == {
            frozenset(each) for each in ((BEN, BEA), (OTTO,), (CARL, CLEO), (PRESS,))
        }


async def test_a_recipient_named_several_times_gets_the_mail_once(sites: ThreeSites) -> None:
    recipients = [BEN, PRESS, BEN, OTTO, PRESS, BEN]
    assert (await submit(sites.outgoing, MESSAGE, recipients=recipients)).code == 250
    assert sorted(each for got in sites.network.got for each in got.recipients) == sorted([BEN, OTTO, PRESS])


# --- one group fails -----------------------------------------------------------------------------------


async def test_a_peer_whose_kme_is_down_waits_alone_and_the_retry_completes_it(sites: ThreeSites) -> None:
    await sites.to_carol.cut()
    assert (await submit(sites.outgoing, MESSAGE, recipients=MANY)).code == 451
    assert groups(sites.network.got) == {(BEN, BEA), (OTTO,), (PRESS,)}
    issued = sites.keys_issued()
    await sites.to_carol.mend()
    reply = await submit(sites.outgoing, MESSAGE, recipients=MANY)
    while reply.code != 250:  # the breaker lets a try through once its time is over
        assert reply.code == 451
        reply = await submit(sites.outgoing, MESSAGE, recipients=MANY)
    assert groups(sites.network.got) == {(BEN, BEA), (OTTO,), (PRESS,), (CARL, CLEO)}
    assert sites.keys_issued() == issued + 1


@pytest.mark.parametrize("busy", [BEN, BEA, CARL, OTTO, PRESS])
async def test_a_recipient_for_whom_the_next_hop_is_busy_waits_alone_and_their_retry_takes_no_key(
    sites: ThreeSites, busy: str
) -> None:
    sites.network.on_rcpt = {busy: "450 4.2.0 busy"}
    assert (await submit(sites.outgoing, MESSAGE, recipients=MANY)).code == 451
    assert sorted(each for got in sites.network.got for each in got.recipients) == sorted({*MANY} - {busy})
    issued, before = sites.keys_issued(), len(sites.network.got)
    sites.network.on_rcpt = {}
    assert (await submit(sites.outgoing, MESSAGE, recipients=MANY)).code == 250
    assert groups(sites.network.got[before:]) == {(busy,)}
    assert sites.keys_issued() == issued


async def test_a_whole_group_that_the_next_hop_refuses_does_not_stop_the_others(sites: ThreeSites) -> None:
    sites.network.on_rcpt = {BEN: "550 5.1.1 unknown", BEA: "550 5.1.1 unknown"}
    assert str(await submit(sites.outgoing, MESSAGE, recipients=MANY)).startswith("554 5.")
    assert groups(sites.network.got) == {(OTTO,), (CARL, CLEO), (PRESS,)}


async def test_who_is_refused_by_policy_at_once_hears_it_alone(sites: ThreeSites) -> None:
    codes = [reply.code for reply in await replies_to_each(sites.outgoing, MESSAGE, [BEN, ROSA, CARL])]
    assert codes == [250, 550, 250, 250]
    assert groups(sites.network.got) == {(BEN,), (CARL,)}


async def test_who_is_refused_by_policy_for_the_message_does_not_stop_the_others(sites: ThreeSites) -> None:
    assert str(await submit(sites.outgoing, MESSAGE, recipients=[MAX, BEN, CARL])).startswith("552 5.2.3")
    assert groups(sites.network.got) == {(BEN,), (CARL,)}


async def test_who_is_held_and_who_is_refused_both_leave_the_others_theirs(sites: ThreeSites) -> None:
    sites.network.on_rcpt = {BEN: "550 5.1.1 unknown"}
    await sites.to_carol.cut()
    reply = await submit(sites.outgoing, MESSAGE, recipients=MANY)
    assert reply.code == 451, "held comes before refused: the retry is told the rest"
    assert groups(sites.network.got) == {(BEA,), (OTTO,), (PRESS,)}


# --- nobody sees a Bcc ---------------------------------------------------------------------------------

HIDDEN = [
    b"Bcc: bea@bob.example, cleo@carol.example\r\n",
    b"bcc:bea@bob.example,\r\n\tcleo@carol.example\r\n",
    b"BCC : bea@bob.example\r\nResent-Bcc: cleo@carol.example\r\n",
    b"Bcc:\r\n bea@bob.example\r\nbcc: cleo@carol.example\r\n",
]
ECDSA_VARIES = 16
"""Octets by which two messages of level pqc differ by chance: r and s of ECDSA are numbers, some of them shorter."""


def shape(message: bytes) -> tuple[list[bytes], list[tuple[type, object]]]:
    """All of a sealed message that anybody can see, but for its size and what is new in each: keys, nonces, trace, mark."""
    header, _ = mime.split(message)
    trace = re.compile(rb" id [0-9a-f]+;\r\n\t[^\r]*\r\n|(?<=X-QuMail-Sealed: )[A-Za-z0-9+/]{43}=")
    fields = [trace.sub(b"", raw) for _, raw in mime.fields(header)]
    enveloped = cms.decode_enveloped(mime.sealed_content(message))
    recipients = [(type(each), getattr(each, "certificate", None)) for each in enveloped.recipients]
    return fields, recipients


def size(message: bytes) -> int:
    """How many octets are sealed."""
    return len(cms.decode_enveloped(mime.sealed_content(message)).ciphertext)


@pytest.mark.parametrize("level", ["aes", "otp", "pqc", "rsa", "pqc+aes"])
async def test_a_message_looks_and_opens_the_same_for_any_bcc_recipient(
    tmp_path: Path, identities: Identities, level: str
) -> None:
    policies = {
        "default.toml": f'levels = ["{level}"]\n',
        "carol.example.toml": 'levels = ["aes"]\n',
        "open.example.toml": 'levels = ["plaintext"]\n',
    }
    message = mails.plain()
    async with three_sites(tmp_path, policies, identities) as sites:
        assert (await submit(sites.outgoing, message, recipients=[BEN])).code == 250
        [alone] = sites.network.got
        for hidden, others in zip(HIDDEN, ([BEA], [CLEO], [BEA, CLEO, PRESS], [PRESS, BEA]), strict=True):
            copied = message.replace(b"Subject:", hidden + b"Subject:")
            before = len(sites.network.got)
            assert (await submit(sites.outgoing, copied, recipients=[BEN, *others])).code == 250
            got = sites.network.got[before:]
            [bens] = [each for each in got if BEN in each.recipients]
            assert shape(bens.message) == shape(alone.message)
            if BEA not in others:  # the sealed envelope of Bob's copy names Bob's recipients only
                by_chance = ECDSA_VARIES if level.startswith("pqc") else 0
                assert abs(size(bens.message) - size(alone.message)) <= by_chance
            for each in got:
                assert b"bea@" not in each.message
                assert b"cleo@" not in each.message
                assert len({address.rpartition("@")[2] for address in each.recipients}) == 1
        opened = await open_all(sites, [each for each in sites.network.got if each.recipients != (PRESS,)])
    assert {content.partition(b"\r\n")[2] for content in opened.values()} == {message}
    assert {content.partition(b"\r\n")[0] for who, content in opened.items() if BEN in who} == {
        f"X-QuMail-Protection: {level}; peer=alice; author=peer".encode()
    }


async def test_a_message_that_only_bcc_recipients_get_names_none_of_them(sites: ThreeSites) -> None:
    message = mails.plain().replace(b"To: Ben <ben@bob.example>\r\n", b"Bcc: bea@bob.example, cleo@carol.example\r\n")
    assert (await submit(sites.outgoing, message, recipients=[BEA, CLEO])).code == 250
    opened = await open_all(sites, sites.network.got)
    assert set(opened) == {(BEA,), (CLEO,)}
    for content in (*opened.values(), *(each.message for each in sites.network.got)):
        assert b"bea@" not in content
        assert b"cleo@" not in content
