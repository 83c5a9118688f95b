"""The delivery journal over each back end.
Standard: what is delivered is not kept, what is not is kept as it was.
"""

from __future__ import annotations

from relay.store import JournalForm, Store


async def test_the_journal_gives_back_what_it_was_told_and_forgets_in_time(store: Store) -> None:
    key = bytes(32)
    forms = [JournalForm(("a@x", "b@x"), True, {"n": 1}, b"gone"), JournalForm(("c@y",), False, {}, b"sealed")]
    await store.journal.remember(key, forms)
    assert not store.journal.empty
    assert await store.journal.recall(key) == [JournalForm(("a@x", "b@x"), True, {"n": 1}, None), forms[1]]
    assert await store.journal.recall(bytes(31) + b"x") == []
    assert await store.journal.expire() == 0
    assert await store.journal.expire(-1) == 2
    assert await store.journal.recall(key) == []
