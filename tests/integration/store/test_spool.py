"""A spool: what was written is found by the next process, wherever the writing was cut.
Standard: a record is there whole or not at all; a file is removed only when the store has what is in it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from relay.errors import StoreUnavailable
from relay.key_receiver import take_over_keys
from relay.key_receiver.receiver import Delivered
from relay.store.record_files import MAX_OCTETS, left_behind
from relay.store.secret import SealedOctets, SiteSecret
from relay.store.spool import SUFFIX, Spool
from relay.store.store import Store
from tests.testlib.received import mark_used

SECRET = SiteSecret(bytes(range(32)))
RECORDS = [b"first", b"second, which is longer", b"", b"ends with zeros" + bytes(9)]


def delivered(*key_IDs: str, octets: bytes = b"\x07" * 32) -> Delivered:
    """A reply of an ETSI KME with these keys."""
    keys = [{"key_ID": key_ID, "key": base64.b64encode(octets).decode()} for key_ID in key_IDs]
    return Delivered("backbone", "etsi014", "2", key_IDs, json.dumps({"keys": keys}).encode())


def written(directory: Path, records: list[bytes]) -> Path:
    """The file of a writer that has let go of it."""
    spool = Spool(directory, SECRET)
    for record in records:
        spool.append(record)
    spool.close()
    [path] = directory.glob("*.spool")
    return path


def found(directory: Path, secret: SiteSecret = SECRET) -> list[list[bytes]]:
    return [file.records for file in left_behind(directory, SUFFIX, secret)]


@contextmanager
def no_room() -> Iterator[None]:
    """No file of this process can grow."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_what_was_written_is_found_octet_for_octet_once_the_writer_has_let_go(tmp_path: Path) -> None:
    spool = Spool(tmp_path, SECRET)
    for record in RECORDS:
        spool.append(record)
    assert found(tmp_path) == []
    spool.hand_over()
    assert found(tmp_path) == [RECORDS]


def test_a_killed_writer_leaves_what_it_has_written(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        spool = Spool(tmp_path, SECRET)
        for record in RECORDS:
            spool.append(record)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert found(tmp_path) == [RECORDS]


def test_writing_waits_for_no_disk_until_it_is_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed process leaves is there without; the relay's event loop must not wait for a disk."""
    synced: list[str] = []

    def syncing(name: str) -> Callable[[int], None]:
        return lambda file: synced.append(f"{name} {Path(f'/proc/self/fd/{file}').readlink()}")

    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, syncing(name))
    spool = Spool(tmp_path, SECRET)
    spool.append(b"one")
    spool.hand_over()
    spool.append(b"two")
    assert synced == []
    spool.flush()
    spool.flush()
    assert synced == [f"fdatasync {spool._path}", f"fsync {tmp_path}", f"fdatasync {spool._path}"]
    spool.close()


async def test_a_cancelled_look_leaves_no_file_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, RECORDS)
    looks, goes_on = threading.Event(), threading.Event()
    opened = SECRET.open

    def slow(sealed: SealedOctets, context: bytes) -> bytes:
        looks.set()
        goes_on.wait(30)
        return opened(sealed, context)

    secret = SiteSecret(bytes(range(32)))
    monkeypatch.setattr(secret, "open", slow)
    looking = asyncio.create_task(take_over_keys(tmp_path, secret, None))  # type: ignore[arg-type]
    await asyncio.to_thread(looks.wait, 30)
    looking.cancel()
    asyncio.get_running_loop().call_soon(goes_on.set)
    with pytest.raises(asyncio.CancelledError):
        await looking
    assert found(tmp_path) == [RECORDS]


def test_no_key_and_no_name_of_one_can_be_read_in_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, [delivered("a-key-ID").encoded()])
    content = path.read_bytes()
    assert all(word not in content for word in (b"a-key-ID", b"backbone", b"BwcHBwcH"))
    assert path.stat().st_mode & 0o777 == 0o600


def test_wherever_the_writing_is_cut_all_records_before_that_are_there(tmp_path: Path) -> None:
    """A power failure leaves of the last records any part; what was not written reads as zeros."""
    path = written(tmp_path, RECORDS)
    whole = path.read_bytes().rstrip(b"\0")
    ends = [0]
    while ends[-1] < len(whole):
        ends.append(ends[-1] + 4 + int.from_bytes(whole[ends[-1] : ends[-1] + 4], "big"))
    for cut in range(len(whole) + 1):
        for rest in (b"", bytes(100)):
            path.write_bytes(whole[:cut] + rest)
            [file] = left_behind(tmp_path, SUFFIX, SECRET)
            expected = sum(end <= cut for end in ends[1:])
            assert file.records == RECORDS[:expected]
            assert bool(file.torn) == bool(whole[ends[expected] : cut].strip(b"\0"))


@pytest.mark.parametrize("at", range(0, 60, 7))
def test_a_changed_record_is_not_taken_for_a_key(tmp_path: Path, at: int) -> None:
    path = written(tmp_path, [b"the only record there is"])
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    with capture_logs():
        assert not any(found(tmp_path))


def test_without_its_secret_a_file_stays_where_it_is(tmp_path: Path) -> None:
    path = written(tmp_path, RECORDS)
    with capture_logs() as logs:
        assert found(tmp_path, SiteSecret(bytes(32))) == []
    assert [line["event"] for line in logs] == ["record_file_not_read"]
    assert path.exists()
    assert found(tmp_path, SiteSecret(bytes(32), bytes(range(32)))) == [RECORDS]


def test_without_room_for_another_file_one_is_not_handed_over_and_its_room_stays(tmp_path: Path) -> None:
    """A reply may be on its way for which the room was taken."""
    spool = Spool(tmp_path, SECRET)
    spool.append(b"one")
    with no_room(), capture_logs():
        spool.hand_over()
    assert found(tmp_path) == []
    spool.append(b"two")
    spool.hand_over()
    assert found(tmp_path) == [[b"one", b"two"]]
    spool.close()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_changed_record_does_not_cost_the_others(tmp_path: Path) -> None:
    path = written(tmp_path, RECORDS)
    content = bytearray(path.read_bytes())
    content[30] ^= 1
    path.write_bytes(content)
    [file] = left_behind(tmp_path, SUFFIX, SECRET)
    assert (file.records, file.torn > 0) == (RECORDS[1:], True)


def test_with_no_room_it_is_not_ready_and_what_has_room_can_be_written_then(tmp_path: Path) -> None:
    spool = Spool(tmp_path, SECRET)
    with no_room(), pytest.raises(StoreUnavailable):
        spool.ready()
    spool.ready()
    spool.append(b"one")
    with no_room(), pytest.raises(StoreUnavailable):
        spool.append(b"two")
    spool.append(b"three")
    spool.close()
    assert found(tmp_path) == [[b"one", b"three"]]


def test_no_file_becomes_larger_than_what_is_read(tmp_path: Path) -> None:
    """What does not fit waits until the file is handed over."""
    spool = Spool(tmp_path, SECRET)
    with pytest.raises(StoreUnavailable, match="is full"):
        for _ in range(40):
            spool.note(bytes(2 * 2**20 - 100))
    [path] = tmp_path.iterdir()
    assert MAX_OCTETS - 8 * 2**20 < path.stat().st_size <= MAX_OCTETS
    spool.hand_over()
    assert len(found(tmp_path)[0]) > 25
    spool.ready()
    spool.close()


async def test_what_was_left_behind_goes_into_the_store_and_no_copy_stays(tmp_path: Path, store: Store) -> None:
    written(tmp_path, [delivered("one", "two").encoded()])
    written_again = Spool(tmp_path, SECRET)
    written_again.append(delivered("three").encoded())
    assert await take_over_keys(tmp_path, SECRET, store.received) == 2
    written_again.hand_over()
    assert await take_over_keys(tmp_path, SECRET, store.received) == 1
    held, _ = await store.received.look("backbone", "2", ["one", "two", "three"])
    assert held == dict.fromkeys(["one", "two", "three"], b"\x07" * 32)
    written_again.close()
    assert not list(tmp_path.glob("*.spool"))


async def test_a_key_that_was_used_and_destroyed_does_not_come_back(tmp_path: Path, store: Store) -> None:
    await store.received.put("backbone", "2", {"one": b"\x07" * 32})
    await mark_used(store, "backbone", "2", ["one"], keep_for=0)
    await store.received.destroy_expired(1e12)
    written(tmp_path, [delivered("one", "two").encoded()])
    await take_over_keys(tmp_path, SECRET, store.received)
    held, destroyed = await store.received.look("backbone", "2", ["one", "two"])
    assert (set(held), set(destroyed)) == ({"two"}, {"one"})


async def test_what_the_store_does_not_take_stays_until_it_does(tmp_path: Path, store: Store) -> None:
    written(tmp_path, [delivered("one").encoded()])

    class Full:
        async def store(self, group: str, master_sae: str, keys: dict[str, bytes]) -> None:
            raise StoreUnavailable("full")

    with pytest.raises(StoreUnavailable):
        await take_over_keys(tmp_path, SECRET, Full())  # type: ignore[arg-type]
    assert await take_over_keys(tmp_path, SECRET, store.received) == 1


async def test_what_a_newer_relay_has_written_stays_and_stops_nobody(tmp_path: Path, store: Store) -> None:
    path = written(tmp_path, [b"something else"])
    other = Spool(tmp_path, SECRET)
    other.append(delivered("one").encoded())
    other.close()
    with capture_logs() as logs:
        assert await take_over_keys(tmp_path, SECRET, store.received) == 1
    assert [line["event"] for line in logs] == ["record_file_not_read"]
    assert list(tmp_path.glob("*.spool")) == [path]


def _deleted(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    "take_away", [_deleted, lambda directory: directory.rename(directory.with_name("elsewhere"))], ids=["files", "all"]
)
def test_what_was_written_before_and_after_the_file_was_taken_away_is_found(
    tmp_path: Path, take_away: Callable[[Path], object]
) -> None:
    directory = tmp_path / "keys.spool"
    spool = Spool(directory, SECRET)
    spool.append(b"before")
    take_away(directory)
    spool.append(b"after")
    spool.close()
    assert found(directory) == [[b"before", b"after"]]


def test_where_something_else_has_taken_the_place_of_the_directory_nothing_is_written_until_it_is_gone(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "keys.spool"
    spool = Spool(directory, SECRET)
    spool.append(b"before")
    directory.rename(tmp_path / "elsewhere")
    directory.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="no file can be made there"):
            spool.append(b"meanwhile")
    directory.unlink()
    spool.append(b"after")
    spool.close()
    assert found(directory) == [[b"before", b"after"]]
