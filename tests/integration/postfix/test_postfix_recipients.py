"""Recipients whom Postfix reads as a route, or adds by itself: sealed as policy wants, once, and nobody is lost.
Standard: deploy/postfix as it stands in each of its ways; RFC 5321 (4.1.2) and RFC 1123 (5.2.16) for routes.
"""

from __future__ import annotations

import pwd
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from relay.kme import DevelopmentKMEs, LinkSettings
from tests.testlib.house import POLICIES, WAYS, House, house
from tests.testlib.postfix import requires_postfix

pytestmark = [requires_postfix, pytest.mark.asyncio(loop_scope="module")]

ROUTES = ("{}%bob.example@alice.example", "bob.example!{}@alice.example", '"{}@bob.example"@alice.example')
SOURCE_ROUTES = ("@bob.example:{}@alice.example", "@alice.example,@bob.example:{}@alice.example")
IN_CLEAR = 'levels = ["plaintext"]\n'
ALLOWED = {
    f"alice.example/{name}.toml": IN_CLEAR for name in ("eve%25bob.example", "bob.example%21eve", "eve%40bob.example")
}
"""Files for addresses that may be routes, which let mail for Eve leave in clear."""
ADDED = {
    "always_bcc": "always@bob.example",
    "sender_bcc_maps": "inline:{ bea@alice.example=sender@bob.example }",
    "recipient_bcc_maps": "inline:{ al@alice.example=recipient@bob.example }",
    "virtual_alias_maps": "inline:{ {both@alice.example=ann@alice.example, bea@alice.example} }",
    "recipient_canonical_maps": "inline:{ old@alice.example=new@alice.example }",
    "alias_maps": "inline:{ {team=ann, bea} }",
}
"""Ways in which Postfix adds or exchanges recipients. They stand in main.cf before deploy/postfix is applied."""
USER = next(entry.pw_name for entry in pwd.getpwall() if entry.pw_uid not in (0, 65534))
"""Somebody of this host, whose .forward file leads to Bob's site."""
MAILS = {
    "plain": ("ann", ["ann@alice.example"]),
    "sender": ("bea", ["ann@alice.example"]),
    "recipient": ("ann", ["al@alice.example"]),
    "mixed": ("bea", ["al@alice.example", "ben@bob.example"]),
    "virtual": ("ann", ["both@alice.example", "ben@bob.example"]),
    "canonical": ("ann", ["old@alice.example"]),
    "alias": ("ann", ["team@alice.example"]),
    "forward": ("ann", [f"{USER}@alice.example"]),
}
INSTEAD = {
    "both@alice.example": ["ann@alice.example", "bea@alice.example"],
    "old@alice.example": ["new@alice.example"],
    "team@alice.example": ["ann@alice.example", "bea@alice.example"],
}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=WAYS)
async def alice(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    """Alice's organisation in one of the ways."""
    directory = tmp_path_factory.mktemp("house")
    link = LinkSettings(key_rate=1_000_000)
    with forward_file() as forward:
        async with (
            DevelopmentKMEs(state_dir=directory / "kme", host="127.0.0.1", ports=(0, 0), link=link) as kmes,
            house(
                request.param, directory, kmes, policies={**POLICIES, **ALLOWED},
                settings={**ADDED, "forward_path": str(forward)},
            ) as made,
        ):  # fmt: skip
            yield made


@contextmanager
def forward_file() -> Iterator[Path]:
    """A .forward file that every user can read, and so has."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        path = Path(name) / "forward"
        path.write_text("forward@bob.example\n")
        path.chmod(0o644)
        yield path


@pytest.mark.promise("Nothing that policy wants sealed leaves in clear by a route in its address")
async def test_no_route_in_a_local_part_leads_to_bob_in_clear(alice: House) -> None:
    routes = [route.format("ben") for route in ROUTES]
    replies = [await alice.send(f"route-{number}", route) for number, route in enumerate(routes)]
    for number, route in enumerate(routes):
        await alice.sendmail(f"script-{number}", route)
    waiting = await alice.settled()
    assert alice.unsealed_at_bob == []
    if alice.way == "smarthost":  # which delivers to its own domain without the relay
        assert at_home(alice, "route") == [[route] for route in routes]
        return
    assert waiting == set(routes)
    assert alice.own.got == []
    at_once = alice.way in ("proxy", "milter")
    assert {str(reply)[:9] for reply in replies} == ({"451 4.7.1"} if at_once else {"250 2.0.0"})
    await alice.postfix.command("postsuper", "-d", "ALL")


def at_home(alice: House, subject: str) -> list[list[str]]:
    """Who of Alice's own users has got the mails `subject-0`, `subject-1` and so on, as far as there are any."""
    found = [alice.delivered(f"{subject}-{number}") for number in range(len(ROUTES))]
    return [own for got in found if (own := [each for each in got if each.endswith("@alice.example")])]


async def test_a_source_route_is_mail_for_its_last_domain(alice: House) -> None:
    for number, route in enumerate(SOURCE_ROUTES):
        assert (await alice.send(f"source-{number}", route.format("ben"))).code == 250
    await alice.settled()
    assert at_home(alice, "source") == [["ben@alice.example"]] * len(SOURCE_ROUTES)


async def test_what_a_policy_file_lets_out_in_clear_to_such_an_address_stays_in_the_house(alice: House) -> None:
    for number, route in enumerate(ROUTES):
        assert (await alice.send(f"allowed-{number}", route.format("eve"))).code == 250
    await alice.settled()
    assert at_home(alice, "allowed") == [[route.format("eve")] for route in ROUTES]
    assert alice.unsealed_at_bob == []


@pytest.mark.promise("Nothing that policy wants sealed leaves in clear by a route in its address")
async def test_whom_postfix_adds_gets_the_mail_sealed_and_everybody_once(alice: House) -> None:
    for subject, (sender, recipients) in MAILS.items():
        assert (await alice.send(subject, *recipients, sender=f"{sender}@alice.example")).code == 250
    await alice.sendmail("script", "al@alice.example", "ben@bob.example")
    await alice.settled()
    assert {subject: alice.delivered(subject) for subject in MAILS} == {
        subject: expected(alice.way, sender, recipients) for subject, (sender, recipients) in MAILS.items()
    }
    copies = [] if alice.way == "milter" else ["always@bob.example", "recipient@bob.example"]
    assert alice.delivered("script") == sorted(["al@alice.example", "ben@bob.example", *copies])
    assert alice.unsealed_at_bob == []


def expected(way: str, sender: str, recipients: list[str]) -> list[str]:
    """Who gets a mail: with the milter there are no copies, in front of the proxy no maps of any kind."""
    behind = ("team@alice.example",) if way == "proxy" else tuple(INSTEAD)
    got = [new for each in recipients for new in (INSTEAD[each] if each in behind else [each])]
    if way == "smarthost":  # where forwarding starts in front of the relay
        got = ["forward@bob.example" if each == f"{USER}@alice.example" else each for each in got]
    if way not in ("milter", "proxy"):
        got += ["always@bob.example"]
        got += ["sender@bob.example"] if sender == "bea" else []
        got += ["recipient@bob.example"] if "al@alice.example" in recipients else []
    return sorted(got)
