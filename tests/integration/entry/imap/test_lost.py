"""A message whose key no KME knows: late at first, and tried again; lost after a while, told apart, and left alone.
Standard: quarantine.hold_for, as for mail in flight; what an IMAP client sees of it are the message's keywords.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from relay.formats import mime
from relay.kme import DevelopmentKMEs
from relay.store.received_table import KeyName
from relay.store.secret import SiteSecret
from relay.store.store import open_store
from tests.integration.entry.imap.conftest import Alice, bob_at, opened, original, visit
from tests.testlib.imap_double import IMAPDouble
from tests.testlib.relay_command import run
from tests.testlib.sites import serving

LOST, LATE = "$QuMailKeyLost", "$QuMailUnopened"
YEARS_AGO, IN_TEN_YEARS = "25-Nov-2020 10:00:00 +0000", "25-Nov-2036 10:00:00 +0000"


def taken_away(kmes: DevelopmentKMEs, sealed: bytes) -> dict[str, Any]:
    """The KME does not have the key of this message any more."""
    there, content = kmes.link.waiting, mime.sealed_content(sealed)
    return {key_ID: there.pop(key_ID) for key_ID in list(there) if key_ID.encode() in content}


async def with_lost_key(alice: Alice, kmes: DevelopmentKMEs, provider: IMAPDouble, date: str) -> None:
    """One message whose key the KME has let go of, and one that can be opened."""
    sealed = await alice.seal(original("lost"))
    provider.put(sealed)
    taken_away(kmes, sealed)
    provider.put(await alice.seal(original("good")))
    provider.folders["INBOX"][0].date = date


@pytest.mark.in_process
@pytest.mark.parametrize("hold_for", [1, 14400])
async def test_a_key_that_has_not_come_for_long_is_lost_and_not_asked_for_again(
    hold_for: int,
    alice: Alice,
    provider: IMAPDouble,
    tmp_path: Path,
    kmes: DevelopmentKMEs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever date a message says it has, the time counts for which it was seen here."""
    monkeypatch.setattr("relay.entry.imap.folder.RETRY_LONGEST_S", 0.2)
    bob = bob_at(provider, tmp_path, kmes, f"[quarantine]\nhold_for = {hold_for}")
    await with_lost_key(alice, kmes, provider, IN_TEN_YEARS if hold_for == 1 else YEARS_AGO)
    async with serving(bob):
        await provider.until(lambda: LOST in provider.folders["INBOX"][0].flags)
        told = len(provider.told)
        provider.put(await alice.seal(original("later")))
        await provider.until(lambda: len(provider.messages("Sealed")) == 2)
    assert LATE in provider.folders["INBOX"][0].flags
    fetched = [line for line in provider.told[told:] if re.match(r"UID FETCH .*BODY\.PEEK\[\]", line)]
    assert fetched
    assert all(" 1 " not in line and " 1:" not in line for line in fetched), "it is not looked at any more"
    assert opened(provider.messages()) == [original("good"), original("later")]


async def test_once_tells_lost_from_late_and_a_flag_that_is_taken_away_has_it_tried_again(
    alice: Alice, provider: IMAPDouble, tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    bob = bob_at(provider, tmp_path, kmes)
    await with_lost_key(alice, kmes, provider, YEARS_AGO)
    visits = [(await visit(bob))[0] for _ in range(3)]
    assert [(each.opened, each.unopened, each.lost) for each in visits] == [(1, 1, 0), (0, 0, 1), (0, 0, 1)]
    status, _, out = await run("imap", "once", "--config", bob.config_file)
    assert (status, b"1 whose key is lost" in out) == (1, True)
    provider.folders["INBOX"][0].flags.clear()
    [again] = await visit(bob)
    assert (again.unopened, again.lost) == (1, 0)


@pytest.mark.in_process
async def test_a_key_that_is_late_is_waited_for(
    alice: Alice, provider: IMAPDouble, tmp_path: Path, kmes: DevelopmentKMEs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.entry.imap.folder.RETRY_LONGEST_S", 0.2)
    bob = bob_at(provider, tmp_path, kmes)
    sealed = await alice.seal(original("late"))
    provider.put(sealed)
    keys = taken_away(kmes, sealed)
    provider.folders["INBOX"][0].date = IN_TEN_YEARS
    async with serving(bob):
        await provider.until(lambda: LATE in provider.folders["INBOX"][0].flags)
        kmes.link.waiting |= keys
        await provider.until(lambda: len(provider.messages("Sealed")) == 1)
    assert opened(provider.messages()) == [original("late")]


@pytest.mark.in_process
async def test_a_key_that_was_lost_when_all_processes_were_killed_is_not_waited_for(
    alice: Alice, provider: IMAPDouble, tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    bob = bob_at(provider, tmp_path, kmes)
    sealed = await alice.seal(original("lost"))
    provider.put(sealed)
    lost = [KeyName("alice-bob", "2", key_ID) for key_ID in taken_away(kmes, sealed)]
    secret = SiteSecret.load_or_create(bob.config.store.secret)
    async with await open_store(bob.config.store.database, secret) as store:
        await store.received.note_unanswered(lost)
    [first] = await visit(bob)
    assert (first.opened, first.unopened, first.lost) == (0, 0, 1)
    assert LOST in provider.folders["INBOX"][0].flags
