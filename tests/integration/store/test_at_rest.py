"""What lies on the disk: sealed, bound to its row, gone when destroyed, and moved under a newer secret.
Standard: a row that is not as it was stored gives an error and never a key.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from relay.errors import StoreUnavailable
from relay.store.received_table import UNUSED_KEEP_FOR_S
from relay.store.secret import SiteSecret
from relay.store.store import Store, open_store
from tests.integration.store.conftest import Clock
from tests.testlib.databases import Backend
from tests.testlib.received import held, mark_used

KEY = b"these octets must never be seen!"


def keep_only_newest(secret_path: Path) -> None:
    """What an administrator does with an editor after `reseal`."""
    secret_path.write_text(secret_path.read_text().splitlines()[0])


def on_disk(backend: Backend) -> bytes:
    """All files of an SQLite database in one."""
    return b"".join(path.read_bytes() for path in sorted(Path(backend.where).parent.iterdir()))


@pytest.mark.promise("Received keys and messages in quarantine lie sealed under the site's secret")
async def test_no_key_lies_in_the_database_in_clear(store: Store, backend: Backend) -> None:
    await store.received.put("g", "alice", {"k": KEY})
    rows = await backend.run("SELECT * FROM received_keys")
    assert len(rows) == 1
    assert all(KEY not in value for value in rows[0] if isinstance(value, bytes))


async def test_a_changed_row_gives_an_error(store: Store, backend: Backend) -> None:
    await store.received.put("g", "alice", {"k": KEY, "l": KEY})
    await backend.run("UPDATE received_keys SET sealed = ? WHERE key_id = 'k'", bytes(60))
    with pytest.raises(StoreUnavailable, match="changed"):
        await held(store, "g", "alice", ["k"])
    with pytest.raises(StoreUnavailable, match="changed"):
        await store.received.put("g", "alice", {"k": KEY})
    assert await held(store, "g", "alice", ["l"]) == {"l": KEY}


async def test_swapped_rows_give_an_error(store: Store, backend: Backend) -> None:
    await store.received.put("g", "alice", {"k": KEY, "l": KEY[::-1]})
    [(sealed,)] = await backend.run("SELECT sealed FROM received_keys WHERE key_id = 'k'")
    await backend.run("UPDATE received_keys SET sealed = ? WHERE key_id = 'l'", sealed)
    with pytest.raises(StoreUnavailable, match="changed"):
        await held(store, "g", "alice", ["l"])


async def test_a_row_moved_to_another_name_gives_an_error(store: Store, backend: Backend) -> None:
    await store.received.put("g", "alice", {"k": KEY, "l": KEY})
    [(place,)] = await backend.run("SELECT place FROM received_keys WHERE key_id = 'k'")
    await backend.run("DELETE FROM received_keys WHERE key_id = 'k'")
    await backend.run("UPDATE received_keys SET place = ?", place)
    with pytest.raises(StoreUnavailable, match="changed"):
        await held(store, "g", "alice", ["k"])


async def test_the_wrong_secret_opens_nothing_and_is_reported_at_once(backend: Backend, secret: SiteSecret) -> None:
    async with await open_store(backend.where, secret) as store:
        await store.received.put("g", "alice", {"k": KEY, "l": KEY})
    with capture_logs() as logs:
        other = await open_store(backend.where, SiteSecret(bytes(32)))
    async with other:
        assert [(entry["event"], entry["secret_id"], entry["rows"]) for entry in logs] == [
            ("store_secret_missing", secret.ids[0], 2)
        ]
        assert await other.missing_secrets() == {secret.ids[0]: 2}
        with pytest.raises(StoreUnavailable, match=f"secret {secret.ids[0]}, which is missing"):
            await held(other, "g", "alice", ["k"])
        await other.received.put("g", "alice", {"new": KEY})
        assert await held(other, "g", "alice", ["new"]) == {"new": KEY}


async def test_keys_that_cannot_be_opened_are_destroyed_like_others(
    backend: Backend, secret: SiteSecret, clock: Clock
) -> None:
    async with await open_store(backend.where, secret, clock=clock) as store:
        await store.received.put("g", "alice", {"k": KEY})
    async with await open_store(backend.where, SiteSecret(bytes(32)), clock=clock) as store:
        clock.now += UNUSED_KEEP_FOR_S
        assert await store.received.destroy_expired() == 1
        assert await store.missing_secrets() == {}


async def test_of_a_destroyed_key_only_the_name_is_left(store: Store, backend: Backend, clock: Clock) -> None:
    await store.received.put("g", "alice", {"k": KEY})
    clock.now += UNUSED_KEEP_FOR_S
    await store.received.destroy_expired()
    assert await backend.run("SELECT key_id, sealed, secret_id FROM received_keys") == [("k", None, None)]


async def test_a_key_is_overwritten_before_it_is_deleted(sqlite: Backend, secret: SiteSecret, clock: Clock) -> None:
    async with await open_store(sqlite.where, secret, clock=clock) as store:
        await sqlite.run("CREATE TABLE seen (sealed)")
        await sqlite.run(
            "CREATE TRIGGER watch AFTER UPDATE OF sealed ON received_keys"
            " BEGIN INSERT INTO seen VALUES (new.sealed); END"
        )
        await store.received.put("g", "alice", {"k": KEY})
        [(sealed,)] = await sqlite.run("SELECT sealed FROM received_keys")
        clock.now += UNUSED_KEEP_FOR_S
        await store.received.destroy_expired()
        [(noise,), (nothing,)] = await sqlite.run("SELECT sealed FROM seen")
    assert len(noise) == len(sealed)
    assert noise != sealed
    assert nothing is None


@pytest.mark.promise("Received keys and messages in quarantine lie sealed under the site's secret")
@pytest.mark.parametrize("while_open", [True, False])
async def test_a_destroyed_key_is_in_none_of_sqlites_files(
    sqlite: Backend, secret: SiteSecret, clock: Clock, while_open: bool
) -> None:
    async with await open_store(sqlite.where, secret, clock=clock) as store:
        await store.received.put("g", "alice", {f"k{number}": KEY for number in range(200)})
        pieces = [row[0] for row in await sqlite.run("SELECT sealed FROM received_keys")]
        assert all(piece in on_disk(sqlite) for piece in pieces)
        clock.now += UNUSED_KEEP_FOR_S
        await store.received.destroy_expired()
        if while_open:
            assert not any(piece in on_disk(sqlite) for piece in pieces)
    assert not any(piece in on_disk(sqlite) for piece in pieces)


async def test_after_resealing_the_old_secret_is_not_needed(backend: Backend, secret_path: Path) -> None:
    keys = {f"k{number}": number.to_bytes(4, "big") for number in range(1201)}
    async with await open_store(backend.where, SiteSecret.load(secret_path)) as store:
        await store.received.put("g", "alice\0", keys)
    rotated = SiteSecret.rotate(secret_path)
    async with await open_store(backend.where, rotated) as store:
        await store.received.put("g", "alice\0", {"new": KEY})
        assert await store.reseal() == 1201
        assert await store.reseal() == 0
    keep_only_newest(secret_path)
    async with await open_store(backend.where, SiteSecret.load(secret_path)) as store:
        assert await store.missing_secrets() == {}
        assert await held(store, "g", "alice\0", [*keys, "new"]) == keys | {"new": KEY}


async def test_resealing_changes_neither_use_nor_end_of_a_key(
    backend: Backend, secret_path: Path, clock: Clock
) -> None:
    async with await open_store(backend.where, SiteSecret.load(secret_path), clock=clock) as store:
        await store.received.put("g", "alice", {"k": KEY})
        await mark_used(store, "g", "alice", ["k"], 900)
        before = await backend.run("SELECT stored_at, first_used_at, expires_at FROM received_keys")
    async with await open_store(backend.where, SiteSecret.rotate(secret_path), clock=clock) as store:
        clock.now += 100
        await store.reseal()
    assert await backend.run("SELECT stored_at, first_used_at, expires_at FROM received_keys") == before


async def test_resealing_reports_what_it_cannot_open_and_does_the_rest(backend: Backend, secret_path: Path) -> None:
    """Otherwise somebody would drop the old secret and lose keys."""
    async with await open_store(backend.where, SiteSecret.load(secret_path)) as store:
        await store.received.put("g", "alice", {"bad": KEY, "k": KEY, "l": KEY})
    await backend.run("UPDATE received_keys SET sealed = ? WHERE key_id = 'bad'", bytes(60))
    rotated = SiteSecret.rotate(secret_path)
    async with await open_store(backend.where, rotated) as store:
        with pytest.raises(StoreUnavailable, match="2 stored keys were resealed, but 1 cannot be opened"):
            await store.reseal()
        older = "SELECT key_id FROM received_keys WHERE secret_id != ?"
        assert await backend.run(older, rotated.ids[0]) == [("bad",)]


async def test_a_destroyed_key_is_not_resealed(backend: Backend, secret_path: Path, clock: Clock) -> None:
    async with await open_store(backend.where, SiteSecret.load(secret_path), clock=clock) as store:
        await store.received.put("g", "alice", {"k": KEY})
        clock.now += UNUSED_KEEP_FOR_S
        await store.received.destroy_expired()
    async with await open_store(backend.where, SiteSecret.rotate(secret_path)) as store:
        assert await store.reseal() == 0
