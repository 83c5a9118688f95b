"""How relay.toml says where the next hop is, and what `check` finds out about it.
Standard: deploy/relay.toml; what cannot be meant is a fault with a remedy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from relay.config import DirectionSettings, MailDomain, Server, TCPAddress, parse_next_hop
from tests.integration.forward.conftest import Build
from tests.testlib.hop import HANG_UP, Hop


@pytest.mark.parametrize(
    ("text", "meant", "shown"),
    [
        ("127.0.0.1:15026", Server("smtp", TCPAddress("127.0.0.1", 15026)), "127.0.0.1:15026"),
        ("smtp://mail:25", Server("smtp", TCPAddress("mail", 25)), "mail:25"),
        ("[::1]:25", Server("smtp", TCPAddress("::1", 25)), "[::1]:25"),
        ("lmtp://[::1]:24", Server("lmtp", TCPAddress("::1", 24)), "lmtp://[::1]:24"),
        ("lmtp:/run/dovecot/lmtp", Server("lmtp", Path("/run/dovecot/lmtp")), "lmtp:/run/dovecot/lmtp"),
        ("mx:Example.org", MailDomain("example.org"), "mx:example.org"),
        ("mx:example.org:2525", MailDomain("example.org", 2525), "mx:example.org:2525"),
    ],
)
def test_a_next_hop_is_read_and_shown_as_it_was_written(text: str, meant: Server | MailDomain, shown: str) -> None:
    assert parse_next_hop(text) == meant
    assert str(meant) == shown
    assert parse_next_hop(shown) == meant


@pytest.mark.parametrize(
    "text",
    ["", "mail", "mail:", ":25", "a:70000", "a:0", "smtps://a:465", "smtp:a:25", "lmtp:socket", "lmtp:", "lmtp://a",
     "lmtp://a:b", "mx:", "mx:a b", "mx:example.org:x", "mx:example.org:0", "mx:[::1]", "a:25 b:25", 25, None, ["a:25"]],
)  # fmt: skip
def test_what_is_no_next_hop_is_refused_with_how_to_write_it(text: object) -> None:
    with pytest.raises(ValueError, match='write it as "host:port"'):
        parse_next_hop(text)


def direction(**settings: Any) -> DirectionSettings:
    return DirectionSettings.model_validate({"listen": "127.0.0.1:0", "next_hop": "127.0.0.1:25", **settings})


def test_one_next_hop_or_a_list_of_them() -> None:
    one = Server("smtp", TCPAddress("127.0.0.1", 25))
    assert direction().next_hop == (one,)
    assert direction(next_hop=["127.0.0.1:25", "mx:example.org"]).next_hop == (one, MailDomain("example.org"))
    with pytest.raises(ValidationError, match="at least 1 item"):
        direction(next_hop=[])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"next_hop_tls": "required", "next_hop": "lmtp:/run/lmtp"}, "a Unix socket does not have"),
        ({"next_hop_tls_name": "mail.example.org"}, "check nothing without"),
        ({"next_hop_tls": "opportunistic", "next_hop_ca": "ca.pem"}, "check nothing without"),
        ({"next_hop_tls": "yes"}, "'none', 'opportunistic' or 'required'"),
        ({"next_hop_connections": -1}, "greater than or equal to 0"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        direction(**settings)


async def test_looking_at_next_hops_greets_each_of_them_and_sends_no_mail(build: Build) -> None:
    async with Hop() as good, Hop(instead={"EHLO": HANG_UP}) as bad:
        found = dict(await build(good, bad).states())
        await good.until_closed()
    assert found[str(good.address)] == ""
    assert "EHLO: the connection was closed" in found[str(bad.address)]
    assert good.commands == ["EHLO relay.example", "QUIT"]


async def test_looking_at_a_next_hop_without_the_tls_that_is_required_finds_it_wrong(build: Build) -> None:
    async with Hop() as hop:
        [(_, problem)] = await build(hop, next_hop_tls="required").states()
    assert "requires TLS" in problem
