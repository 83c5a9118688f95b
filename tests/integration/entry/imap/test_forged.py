"""A mark in a mailbox that this site did not write is gone soon, and the rest of the message is there once, as it was.
Standard: real Dovecot; forged messages arrive by LMTP or were appended, and the watcher is killed at each step.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from relay.entry.imap.marks import OriginalMarks
from relay.formats import mime
from relay.kme import DevelopmentKMEs
from relay.process import assembly
from relay.store.secret import SiteSecret
from tests.integration.entry.imap.conftest import Alice, bob_site, imap_table, opened, original, visit, watching
from tests.integration.entry.imap.test_kill import another
from tests.testlib import mails, relay_command
from tests.testlib.dovecot import Dovecot, requires_dovecot
from tests.testlib.imap_wire import IMAPWire, Point
from tests.testlib.sites import Site, serving

pytestmark = requires_dovecot

NAME = b"0" * 32
MARK = b"X-QuMail-Protection: otp; peer=alice; sealed=%b; site=%b\r\n" % (NAME, NAME)
PLAIN = mails.plain()
HEAD, _, BODY = PLAIN.partition(b"\r\n\r\n")
LONG = b"Content-Type: text/plain; x=" + b"y" * 9000 + b"\r\n"

FORGED = {
    "on top": MARK + PLAIN,
    "at the end of the header": HEAD + b"\r\n" + MARK + b"\r\n" + BODY,
    "without a name": b"X-QuMail-Protection: otp; peer=alice\r\n" + PLAIN,
    "folded, in small letters": b"x-qumail-protection:\r\n otp;\r\n\tpeer=alice\r\n" + PLAIN,
    "empty": b"X-QuMail-Protection:\r\n" + PLAIN,
    "many": MARK * 3 + HEAD + b"\r\n" + MARK + b"\r\n" + BODY,
    "behind a line that is no field": HEAD + b"\r\nDear Ben,\r\n" + MARK + b"\r\n" + BODY,
    "behind a field longer than is looked at": LONG + MARK + PLAIN,
}
COPY = re.compile(rb"X-QuMail-Protection: none; copy-of=[0-9a-f]{32}; site=[0-9a-f]{32}\r\n")


def clean(messages: list[bytes]) -> list[bytes]:
    """The messages without the mark that says they are copies; what they have of marks otherwise stays."""
    return sorted(COPY.sub(b"", each, count=1) if COPY.match(each) else each for each in messages)


@pytest.mark.promise("Marks are ours")
@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
async def test_a_mark_that_somebody_else_wrote_is_taken_away_and_all_else_stays(
    forged: bytes, bob: Site, server: Dovecot
) -> None:
    date = f"{datetime.now(UTC) - timedelta(days=2):%d-%b-%Y} 04:05:06 +0000"
    with server.client() as client:
        client.append("INBOX", "", "", PLAIN)
        client.append("INBOX", r"(\Flagged \Seen $Forwarded)", f'"{date}"', forged)
    for _ in range(2):
        [visited] = await visit(bob)
        assert (visited.opened, visited.unopened, visited.failure) == (0, 0, "")
        assert clean(server.messages()) == sorted([PLAIN, mime.without_fields(forged, mime.OUR_MARKS)])
    with server.client() as client:
        described = str(client.fetch("2", "(FLAGS INTERNALDATE)"))
    assert f'INTERNALDATE "{date}"' in described
    assert all(flag in described for flag in ("Flagged", "Seen", "$Forwarded"))
    assert "QuMail" not in described


async def test_it_is_gone_within_a_second_of_arriving_and_nothing_else_is_touched(
    alice: Alice, bob: Site, server: Dovecot
) -> None:
    async with serving(bob):
        await asyncio.to_thread(server.deliver, PLAIN, await alice.seal(original("one")), FORGED["on top"])
        await asyncio.to_thread(server.deliver, await alice.seal(original("two")))
        await server.until(2, "Sealed")
        found = await server.until_so(lambda found: len(found) == 4 and any(map(COPY.match, found)))
    assert opened(found) == [original("one"), original("two")]
    assert sum(PLAIN in each for each in found) == 2
    assert not any(MARK in each for each in found)


async def test_marks_of_our_own_stay_in_later_runs_and_under_an_older_secret(
    alice: Alice, bob: Site, server: Dovecot
) -> None:
    await asyncio.to_thread(server.deliver, await alice.seal(original("one")))
    await visit(bob)
    before = server.messages()
    SiteSecret.rotate(bob.config.store.secret)
    [visited] = await visit(bob)
    assert (visited.opened, visited.unopened, visited.failure) == (0, 0, "")
    assert server.messages() == before


async def test_a_mark_of_our_own_counts_for_no_other_message_and_no_other_account(
    alice: Alice, bob: Site, server: Dovecot
) -> None:
    await asyncio.to_thread(server.deliver, await alice.seal(original("one")))
    await visit(bob)
    [genuine] = server.messages()
    mark = genuine.partition(b"\r\n")[0] + b"\r\n"
    await asyncio.to_thread(server.deliver, mark + PLAIN, mark * 2 + original("one"))
    await visit(bob)
    found = server.messages()
    assert found[0] == genuine
    assert sorted(mark in each for each in found) == [False, False, True]
    secret = SiteSecret.load(bob.config.store.secret)
    assert not OriginalMarks(secret, "ben").forged(genuine)
    assert OriginalMarks(secret, "bea").forged(genuine)


@pytest.mark.parametrize("after", ["move", "flag", "delete"])
async def test_a_sealed_message_with_a_mark_is_rid_of_that_and_opened(
    after: str, alice: Alice, server: Dovecot, tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    bob = bob_site(tmp_path / "bob", kmes, imap_table(server.tls, server.ca, f'after = "{after}"'))
    await asyncio.to_thread(server.deliver, MARK + await alice.seal(original("one")))
    for _ in range(2):
        [visited] = await visit(bob)
        assert (visited.unopened, visited.failure) == (0, "")
    found = server.messages()
    assert opened(found) == [original("one")]
    assert len(found) == 1 + (after == "flag")
    assert not any(MARK in each for each in found)


POINTS = [
    Point("APPEND", 1, "before"),
    Point("APPEND", 1, "middle"),
    Point("APPEND", 1, "after"),
    Point("APPEND", 2, "after"),
    Point("UID STORE", 1, "before"),
    Point("UID STORE", 1, "after"),
    Point("UID EXPUNGE", 1, "before"),
    Point("UID EXPUNGE", 1, "after"),
    Point("LOGOUT", 1, "before"),
]


@pytest.mark.parametrize("point", POINTS, ids=str)
async def test_killed_anywhere_and_run_again_each_message_is_there_once(
    point: Point, server: Dovecot, tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    messages = [mails.plain(subject=f"number {number}") for number in range(3)]
    with server.client() as client:
        for each in messages:
            client.append("INBOX", "", "", MARK + each)
    async with IMAPWire(server, point) as wire:
        bob = bob_site(tmp_path / "bob", kmes, imap_table(wire.address, server.ca))
        process = await relay_command.start("imap", "once", "--config", bob.config_file)
        wire.reached = process.kill
        assert await process.wait() < 0, "the point was reached"
        [visited] = await visit(bob)
    assert (visited.failure, visited.unopened) == ("", 0)
    with server.client() as client:
        client.expunge()  # what the watcher had flagged as deleted when it was killed
    assert clean(server.messages()) == sorted(messages)
    assert all(map(COPY.match, server.messages()))


async def test_two_watchers_at_once_leave_one_copy(bob: Site, server: Dovecot, tmp_path: Path) -> None:
    async with assembly.parts(bob.config):
        pass  # the secret is made
    twin = another(bob, tmp_path / "twin")
    messages = [mails.plain(subject=f"number {number}") for number in range(8)]
    async with AsyncExitStack() as both:
        for site in (bob, twin):
            await both.enter_async_context(watching(site))
        for each in messages:
            await asyncio.to_thread(server.deliver, MARK + each)
        found = await server.until_so(lambda found: len(found) == 8 and all(map(COPY.match, found)))
    assert [sum(found_one.endswith(each) for found_one in found) for each in messages] == [1] * 8


async def test_a_server_that_writes_fields_anew_is_not_kept_busy(
    bob: Site, server: Dovecot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No proof holds there, and a copy is made of every forged message once."""
    monkeypatch.setattr(OriginalMarks, "proven", lambda _, message: message)
    async with serving(bob):
        await asyncio.to_thread(server.deliver, MARK + PLAIN)
        await server.until_so(lambda found: any(b"copy-of=" in each for each in found))
        await asyncio.to_thread(server.deliver, PLAIN)
        found = await server.until(2)
    with server.client() as client:
        assert b"UIDNEXT 4" in client.status("INBOX", "(UIDNEXT)")[1][0]
    assert sum(b"copy-of=" in each for each in found) == 1


def test_folding_and_spacing_of_a_mark_prove_the_same() -> None:
    proofs = OriginalMarks(SiteSecret(b"s" * 32), "ben")
    message = proofs.proven(mime.marked(PLAIN, "aes", "alice", "peer", "; sealed=" + NAME.decode()))
    mark, end, rest = message.partition(b"\r\n")
    assert not proofs.forged(message)
    assert not proofs.forged(mark.replace(b"; ", b";\r\n\t") + end + rest.replace(b"Message-ID: ", b"Message-Id:  "))
    assert proofs.forged(mark.replace(b"aes", b"otp") + end + rest)
    assert proofs.forged(message.replace(b"<1@", b"<2@"))
    assert proofs.forged(mark + b"; x" + end + rest)
    assert proofs.forged(mark + end + mark + end + rest)
    assert not proofs.forged(PLAIN)
