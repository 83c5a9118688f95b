"""The whole way through two relays: the outer signature on the wire, the original's own after opening.
Standard: RFC 6376 and RFC 8601; a library that shares no signing code with us has the last word.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import dkim
import pytest

from relay.config import TCPAddress
from relay.formats import mime
from relay.kme import DevelopmentKMEs
from tests.testlib import mails
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site, serving
from tests.testlib.submit import submit
from tests.testlib.zone import Zone
from tests.unit.dkim.conftest import Keys, dkimpy_says, pem

MARK = b"X-QuMail-Protection: aes; peer=alice; author=peer\r\n"


def add_dkim(site: Site, zone: Zone, keys: dict[str, bytes], settings: str = "") -> None:
    """A [dkim] table, with keys by `domain selector`."""
    tables = f'\n[dkim]\ndns_servers = ["{zone.address}"]\n{settings}\n'
    for name, content in keys.items():
        domain, selector = name.split()
        path = site.directory / f"{selector}.pem"
        path.touch(mode=0o600)
        path.write_bytes(content)
        tables += f'[[dkim.keys]]\ndomain = "{domain}"\nselector = "{selector}"\nkey = "{path}"\n'
    site.config_file.write_text(site.config_file.read_text() + tables)


class Two:
    """Alice seals and signs onto the wire; what a test takes from there it gives to Bob, whose mail ends in `sink`."""

    def __init__(self, outgoing: TCPAddress, incoming: TCPAddress, wire: Sink, sink: Sink) -> None:
        self.outgoing, self.incoming, self.wire, self.sink = outgoing, incoming, wire, sink

    async def carry(self, message: bytes) -> tuple[bytes, bytes]:
        """What was on the wire, and what Bob got."""
        assert (await submit(self.outgoing, message)).code == 250
        sealed = self.wire.got[-1].message
        assert (await submit(self.incoming, sealed)).code == 250
        return sealed, self.sink.got[-1].message


@pytest.fixture
async def two(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    kmes: DevelopmentKMEs,
    sink: Sink,
    wire: Sink,
    zone: Zone,
    keys: Keys,
) -> AsyncIterator[Two]:
    """Bob's [dkim] has the settings that a test gives as a parameter."""
    first, second = kmes.urls
    alice = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=first, outgoing=wire.address)
    add_dkim(alice, zone, {"alice.example r": pem(keys.rsa), "alice.example e": pem(keys.ed25519)})
    bob = make_site(tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=second, incoming=sink.address)
    add_dkim(bob, zone, {"bob.example b": pem(keys.bob)}, getattr(request, "param", ""))
    async with AsyncExitStack() as stack:
        outgoing = (await stack.enter_async_context(serving(alice)))["outgoing"]
        incoming = (await stack.enter_async_context(serving(bob)))["incoming"]
        yield Two(outgoing, incoming, wire, sink)


async def test_the_outer_signatures_verify_on_the_wire_and_the_original_ones_after_opening(
    two: Two, zone: Zone, keys: Keys
) -> None:
    original = dkim.sign(mails.plain(), b"r", b"alice.example", pem(keys.rsa)) + mails.plain()
    sealed, opened = await two.carry(original)
    assert sealed.startswith(b"Received: ")
    assert sealed.count(b"DKIM-Signature:") == 2
    assert [dkimpy_says(sealed, zone.texts, index) for index in (0, 1)] == [True, True]
    assert dkimpy_says(opened, zone.texts)
    results, mark, rest = mails.unproven(opened).partition(MARK)
    assert mark
    assert rest == original
    assert b"Authentication-Results: relay.bob.example;\r\n dkim=pass header.d=alice.example header.s=r" in results
    assert b"dkim=pass header.d=alice.example header.s=e header.a=ed25519-sha256" in results
    assert b"arc=none\r\n" in results


@pytest.mark.parametrize(
    ("replaced", "by"),
    [
        (b"Date: ", b"Date: Tue, 1 Dec 2026 10:00:00 +0000\r\nX-Was: "),
        (b"Subject: [...]", b"Subject: [....]"),
        (b"MIME-Version: 1.0", b"MIME-Version: 1.0\r\nReply-To: eve@eve.example"),
    ],
)
async def test_an_outer_header_that_was_changed_or_added_to_shows_as_fail_and_the_mail_arrives(
    two: Two, replaced: bytes, by: bytes
) -> None:
    await submit(two.outgoing, mails.plain())
    sealed = two.wire.got[-1].message
    assert replaced in sealed
    changed = sealed.replace(replaced, by, 1)
    assert (await submit(two.incoming, changed)).code == 250
    results, _, rest = mails.unproven(two.sink.got[-1].message).partition(MARK)
    assert b"dkim=fail" in results
    assert b"dkim=pass" not in results
    assert rest == mails.plain()


async def test_dns_trouble_is_a_temperror_and_the_mail_arrives_all_the_same(two: Two, zone: Zone, keys: Keys) -> None:
    zone.failing.add(keys.rsa.name)
    del zone.texts[keys.ed25519.name]
    _, opened = await two.carry(mails.plain())
    results, _, rest = mails.unproven(opened).partition(MARK)
    assert b"dkim=temperror" in results
    assert b"dkim=permerror" in results
    assert rest == mails.plain()


FORGED = (
    b"Authentication-Results: relay.bob.example; dkim=pass header.d=bank.example\r\n"
    b'Authentication-Results: (a ")\r\n RELAY.bob.example; x=y (" ) other.example; spf=pass\r\n'
    b'authentication-results : "relay.bob.example" 1;\r\n\tspf=pass\r\n'
)
FOREIGN = b"Authentication-Results: mx.alice.example; dkim=pass header.d=alice.example\r\n"


async def test_results_that_claim_to_be_ours_are_removed_inside_and_on_ordinary_mail_others_stay(two: Two) -> None:
    _, opened = await two.carry(FORGED + FOREIGN + mails.plain())
    assert mails.unproven(opened).partition(MARK)[2] == FOREIGN + mails.plain()
    assert (await submit(two.incoming, FORGED + FOREIGN + mails.plain())).code == 250
    ordinary = two.sink.got[-1].message
    assert ordinary.endswith(FOREIGN + mails.plain())
    assert b"relay.bob.example;" not in ordinary.lower()
    assert b"bank.example" not in ordinary


@pytest.mark.parametrize("kind", ["ordinary", "sealed by others"])
async def test_signatures_of_what_is_not_sealed_for_us_are_not_looked_up(
    two: Two, zone: Zone, keys: Keys, kind: str
) -> None:
    message = mails.plain() if kind == "ordinary" else mime.sealed_message(mails.plain(), b"not for us")
    signed = dkim.sign(message, b"r", b"alice.example", pem(keys.rsa)) + message
    assert (await submit(two.incoming, signed, sender="eve@eve.example")).code == 250
    assert two.sink.got[-1].message.endswith(signed)
    assert zone.asked == []


async def test_a_retry_after_the_next_hop_failed_is_signed_once(two: Two, zone: Zone) -> None:
    two.wire.on_data.append("451 4.3.0 not now")
    assert (await submit(two.outgoing, mails.plain())).code == 451
    assert (await submit(two.outgoing, mails.plain())).code == 250
    sealed = two.wire.got[-1].message
    assert sealed.count(b"DKIM-Signature:") == 2
    assert dkimpy_says(sealed, zone.texts)


async def test_an_author_of_another_domain_is_not_signed_for(two: Two) -> None:
    message = mails.plain().replace(b"From: ", b"From: eve@eve.example\r\nX-From: ", 1)
    sealed, _ = await two.carry(message)
    assert b"DKIM-Signature" not in sealed


@pytest.mark.parametrize("two", ["verify = false"], indirect=True)
async def test_without_verify_nothing_is_asked_and_nothing_said(two: Two, zone: Zone) -> None:
    _, opened = await two.carry(FORGED + mails.plain())
    assert mails.unproven(opened).endswith(b"\r\n" + MARK + FORGED + mails.plain())
    assert b"dkim=none" not in opened
    assert zone.asked == []
