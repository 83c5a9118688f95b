"""The delivery journal over each back end.
Standard: what is delivered is not kept, what is not is kept as it was; transactions leave each other's recipients alone.
"""

from __future__ import annotations

from relay.store import Begun, JournalForm, Store

KEY = bytes(32)


async def test_the_journal_gives_back_what_it_was_told_and_forgets_in_time(store: Store) -> None:
    await store.journal.remember(KEY, ["a@x"], [JournalForm(("c@y", "d@y"), {"n": 1}, b"sealed")])
    begun = await store.journal.recall(KEY, ["a@x", "c@y", "d@y", "f@z"])
    assert begun.delivered == {"a@x"}
    [form] = begun.forms
    assert (sorted(form.recipients), form.facts, form.message) == (["c@y", "d@y"], {"n": 1}, b"sealed")
    assert await store.journal.recall(bytes(31) + b"x", ["a@x"]) == Begun()
    assert await store.journal.expire() == 0
    assert await store.journal.expire(-1) == 2, "two waited, one had it"
    assert await store.journal.recall(KEY, ["a@x", "c@y"]) == Begun()


async def test_a_form_that_waits_for_some_of_its_recipients_is_kept_for_them(store: Store) -> None:
    await store.journal.remember(KEY, [], [JournalForm(("c@y", "d@y"), {}, b"sealed")])
    [form] = (await store.journal.recall(KEY, ["c@y", "d@y"])).forms
    await store.journal.remember(KEY, ["c@y"], [JournalForm(("d@y",), form.facts, form.message, form.name)])
    begun = await store.journal.recall(KEY, ["c@y", "d@y"])
    assert begun == Begun(frozenset({"c@y"}), (JournalForm(("d@y",), {}, b"sealed", form.name),))


async def test_a_transaction_leaves_the_recipients_of_another_one_alone(store: Store) -> None:
    await store.journal.remember(KEY, ["a@x"], [JournalForm(("b@y",), {}, b"sealed")])
    await store.journal.forget(KEY, ["c@z"])
    assert (await store.journal.recall(KEY, ["a@x", "b@y"])).delivered == {"a@x"}
    assert len((await store.journal.recall(KEY, ["a@x", "b@y"])).forms) == 1


async def test_who_has_the_mail_is_known_until_he_himself_is_forgotten(store: Store) -> None:
    await store.journal.remember(KEY, ["a@x"], [JournalForm(("b@y",), {}, b"sealed")])
    await store.journal.forget(KEY, ["b@y"])
    assert await store.journal.recall(KEY, ["a@x", "b@y"]) == Begun(frozenset({"a@x"}))
    await store.journal.forget(KEY, ["a@x"])
    assert await store.journal.recall(KEY, ["a@x", "b@y"]) == Begun()
