"""Record files: a killed writer leaves each record whole or not at all, and a torn one is told from others.
Standard: what the next process finds, without a word from the one that wrote. Sealed records: test_spool.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings, strategies as st
from structlog.testing import capture_logs

from relay.audit.writing import ANNOUNCED_SUFFIX, Pending
from relay.errors import StoreUnavailable
from relay.store import spool
from relay.store.mapped_file import MappedFile
from relay.store.record_files import MAX_OCTETS, contents, left_behind
from relay.store.secret import SiteSecret
from relay.store.spool import Spool

SECRET = SiteSecret(bytes(range(32)))
SUFFIX = ".records"
OCTETS = 1 << 13


def found(directory: Path) -> tuple[list[bytes], int]:
    """All records that were left behind, and how many cannot be read; looking changes nothing."""
    files = list(left_behind(directory, SUFFIX))
    return [record for file in files for record in file.records], sum(file.torn for file in files)


def written(directory: Path, records: list[bytes], before: list[bytes] | None = None) -> Path:
    """A file with these records, in which others stood `before`."""
    file = MappedFile(directory, SUFFIX, OCTETS)
    for record in before or []:
        file.add(record)
    file.empty()
    for record in records:
        file.add(record)
    file.close()
    return file.path


some = st.lists(st.binary(max_size=200), max_size=8)


@given(some, some)
def test_what_was_written_is_found_and_nothing_of_what_stood_there_before(
    records: list[bytes], before: list[bytes]
) -> None:
    with TemporaryDirectory() as name:
        written(Path(name), records, before)
        assert found(Path(name)) == (records, 0)


@settings(max_examples=300)
@given(some.filter(bool), st.data())
def test_whatever_a_disk_has_made_of_a_file_no_other_record_is_read(records: list[bytes], data: st.DataObject) -> None:
    """A page that was not written is zeros; else octets may have changed, or the end is missing."""
    with TemporaryDirectory() as name:
        path = written(Path(name), records)
        octets = bytearray(path.read_bytes())
        end = sum(8 + len(record) for record in records)
        begin = data.draw(st.integers(0, end - 1))
        how = data.draw(st.sampled_from(["changed", "zeros", "cut"]))
        if how == "cut":
            del octets[begin:]
        else:
            count = data.draw(st.integers(1, 64))
            octets[begin : begin + count] = bytes(count) if how == "zeros" else os.urandom(count)
        path.write_bytes(octets)
        rest, _ = found(Path(name))
        assert [each for each in records if each in rest] == rest or set(rest) <= set(records)


def test_a_changed_record_is_counted_and_those_around_it_are_read(tmp_path: Path) -> None:
    path = written(tmp_path, [b"first", b"second", b"third"])
    octets = bytearray(path.read_bytes())
    octets[octets.index(b"second")] ^= 1
    path.write_bytes(octets)
    assert found(tmp_path) == ([b"first", b"third"], 1)


WRITER = """
import sys
import threading
from pathlib import Path
from relay.store.mapped_file import MappedFile
file = MappedFile(Path(sys.argv[1]), ".records", 1 << 20)
for number in range(1 << 40):
    if not file.fits(100):
        file.empty()
    file.add(b"%d " % number * 5)
    if number == 1000:
        print("writes", flush=True)
"""


@pytest.mark.parametrize("attempt", range(5))
def test_a_killed_writer_leaves_whole_records_in_order_and_no_gap(tmp_path: Path, attempt: int) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writes\n"
        assert not list(left_behind(tmp_path, SUFFIX)), "it is still written"
        assert len(list(contents(tmp_path, SUFFIX))) == 1
        writer.send_signal(signal.SIGKILL)
    records, torn = found(tmp_path)
    assert torn == 0
    numbers = [int(record.split()[0]) for record in records]
    assert all(record == b"%d " % number * 5 for record, number in zip(records, numbers, strict=True))
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True


def test_without_room_no_file_is_made_and_none_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, offset: int, octets: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StoreUnavailable, match="no room: No space left on device: 1 MiB are needed there"):
        MappedFile(tmp_path, SUFFIX, 1 << 20)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["spool", "announcements"])
def test_a_file_that_somebody_looks_at_as_soon_as_it_is_made_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The search does not block the event loop."""
    found = left_behind(tmp_path, spool.SUFFIX, SECRET) if kind == "spool" else left_behind(tmp_path, ANNOUNCED_SUFFIX)
    really, looked = os.open, threading.Event()

    def open_and_look(path: Path, flags: int, mode: int = 0o777) -> int:
        file = really(path, flags, mode)
        if flags & os.O_EXCL and not looked.is_set():
            looked.set()
            next(found)
        return file

    monkeypatch.setattr(os, "open", open_and_look)
    write = Spool(tmp_path, SECRET).append if kind == "spool" else Pending(tmp_path).add
    writing = threading.Thread(target=write, args=(b"first",), daemon=True)
    writing.start()
    writing.join(10)
    assert not writing.is_alive()
    assert looked.is_set()
    found.close()


@pytest.mark.parametrize(
    "odd", ["FIFO", "directory", "huge", "link to nowhere", "link to a device", "link to a FIFO", "link to a file"]
)
@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.timeout(20)
def test_what_cannot_be_read_stays_is_told_and_keeps_nothing_back(tmp_path: Path, odd: str, sealed: bool) -> None:
    """It comes first in the order of names."""
    directory, elsewhere = tmp_path / "files", tmp_path / "elsewhere"
    if sealed:
        writer = Spool(directory, SECRET)
        writer.append(b"good")
        writer.close()
        [good] = directory.iterdir()
    else:
        good = written(directory, [b"good"])
    suffix, secret = (spool.SUFFIX, SECRET) if sealed else (SUFFIX, None)
    good.rename(good.with_name(f"1{suffix}"))
    there = directory / f"0{suffix}"
    match odd:
        case "FIFO":
            os.mkfifo(there)
        case "directory":
            there.mkdir()
        case "huge":
            with there.open("wb") as file:
                file.truncate(MAX_OCTETS + 1)
        case _:
            os.mkfifo(elsewhere)
            to = {"nowhere": "/nowhere/at/all", "device": "/dev/zero", "FIFO": str(elsewhere), "file": f"1{suffix}"}
            there.symlink_to(to[odd.split()[-1]])
    with capture_logs() as logs:
        for _ in range(2):  # as it is looked at again and again
            assert [file.records for file in left_behind(directory, suffix, secret)] == [[b"good"]]
    assert [(each["event"], each["file"]) for each in logs] == [("record_file_not_read", str(there))]
    assert [each.path for each in contents(directory, suffix, secret) if each.error is not None] == [there]
    assert os.path.lexists(there)


@pytest.mark.parametrize("other_name", [False, True])
def test_what_is_removed_is_overwritten_unless_it_has_another_name(tmp_path: Path, other_name: bool) -> None:
    """What has one is not ours alone: somebody has made it lead to a file of their own, or has a copy by `cp -al`."""
    path, again = written(tmp_path / "files", [b"record"]), tmp_path / "again"
    if other_name:
        again.hardlink_to(path)
    before = path.read_bytes()
    with path.open("rb") as still_open:
        [file] = left_behind(path.parent, SUFFIX)
        file.remove()
        assert not path.exists()
        still_open.seek(0)
        now = still_open.read()
    assert (now == before) is other_name
    assert (b"record" in now) is other_name
