"""Edits while the relay runs: a whole new set or none, however the edit is made, and mail keeps the set it began with.
Standard: waiting is for the new set or a counter, never for a time.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import random
import shutil
import signal
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import LogCapture

from relay.config import TCPAddress
from relay.counting import metrics
from relay.errors import ConfigError
from relay.kme import DevelopmentKMEs
from relay.policy import reload as policy_reload
from relay.policy.decide import PolicySet
from relay.policy.load import PolicyFolder, load_policies
from relay.policy.reload import PoliciesInForce
from relay.policy.walk import FileText, Listing, read_file
from relay.policy.watch import DirectoryWatch, Inotify
from relay.process import app
from tests.testlib import mails
from tests.testlib.counted import counted
from tests.testlib.long import sized
from tests.testlib.policy_files import AES, PEERS, write
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site
from tests.testlib.submit import submit
from tests.testlib.watched_policies import count, levels, until, watched

PQC = 'levels = ["pqc"]\n'
BROKEN = "levels = [\n"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less quiet than administrators get is enough for files that a test writes at once."""
    monkeypatch.setattr(policy_reload, "QUIET_S", 0.1)
    monkeypatch.setattr(policy_reload, "GONE_QUIET_S", 0.5)


async def test_an_edit_is_taken_up_and_a_broken_one_leaves_the_old_set_in_force(
    tmp_path: Path, log: LogCapture
) -> None:
    write(tmp_path, {"default.toml": AES})
    async with watched(tmp_path) as policies:
        before = policies()
        write(tmp_path, {"default.toml": PQC})
        await until(lambda: levels(policies) == ("pqc",))
        assert before.decide("", "x@bob.example").levels == ("aes",)
        write(tmp_path, {"default.toml": BROKEN, "bob.example.toml": AES})
        await until(lambda: count(policies, "broken") == 1)
        assert levels(policies) == ("pqc",)
        assert policies.problems[0].startswith(f"{tmp_path}/default.toml:")
        assert counted(policies.board, metrics.POLICY_PROBLEMS) == 1
        write(tmp_path, {"default.toml": AES})
        await until(lambda: not policies.problems)
        assert levels(policies) == ("aes",)
        assert counted(policies.board, metrics.POLICY_FILES) == 2
    [broken] = [entry for entry in log.entries if entry["event"] == "policies_not_reloaded"]
    assert broken["problems"][0].startswith(f"{tmp_path}/default.toml:")
    assert next(entry["before"] for entry in log.entries if entry["event"] == "policies_loaded") == before.version


async def test_new_and_deleted_files_and_directories_are_noticed(tmp_path: Path) -> None:
    write(tmp_path, {"default.toml": AES})
    async with watched(tmp_path) as policies:
        write(tmp_path, {"bob.example/x.toml": PQC})
        await until(lambda: levels(policies) == ("pqc",))
        (tmp_path / "bob.example" / "x.toml").unlink()
        await until(lambda: levels(policies) == ("aes",))
        write(tmp_path, {"bob.example/x.toml": PQC})
        await until(lambda: levels(policies) == ("pqc",))
        shutil.rmtree(tmp_path / "bob.example")
        await until(lambda: levels(policies) == ("aes",))


async def test_editors_that_write_by_rename_and_swapped_links_within_the_directory_work(tmp_path: Path) -> None:
    directory = write(tmp_path / "policies", {"default.toml": AES})
    async with watched(directory) as policies:
        (directory / ".default.toml.swp").write_text(BROKEN)
        (directory / "4913").touch()
        (directory / "4913").unlink()
        (directory / "default.toml~").write_text(AES)
        (directory / ".new").write_text(PQC)
        (directory / ".new").replace(directory / "default.toml")
        await until(lambda: levels(policies) == ("pqc",))
        assert count(policies, "broken") == 0
        write(directory, {"..2/bob.example.toml": AES, "..3/bob.example.toml": PQC})
        (directory / "..data").symlink_to("..2")
        (directory / "bob.example.toml").symlink_to("..data/bob.example.toml")
        await until(lambda: levels(policies) == ("aes",))
        (directory / "..tmp").symlink_to("..3")
        (directory / "..tmp").replace(directory / "..data")
        await until(lambda: levels(policies) == ("pqc",))


async def test_a_swapped_link_to_the_directory_itself_works_also_the_second_time(tmp_path: Path) -> None:
    write(tmp_path, {"one/default.toml": AES, "two/default.toml": PQC, "broken/default.toml": BROKEN})
    link = tmp_path / "policies"
    link.symlink_to("one")

    def swap(to: str) -> None:
        (tmp_path / "new").symlink_to(to)
        (tmp_path / "new").replace(link)

    async with watched(link) as policies:
        swap("two")
        await until(lambda: levels(policies) == ("pqc",))
        swap("broken")
        await until(lambda: count(policies, "broken") == 1)
        assert levels(policies) == ("pqc",)
        link.unlink()
        await until(lambda: count(policies, "broken") == 2)
        link.symlink_to("one")
        await until(lambda: levels(policies) == ("aes",))
        write(tmp_path, {"one/default.toml": PQC})
        await until(lambda: levels(policies) == ("pqc",))


async def test_being_told_to_read_again_reads_what_no_watch_can_see(tmp_path: Path) -> None:
    elsewhere = write(tmp_path / "elsewhere", {"x.toml": AES}) / "x.toml"
    directory = write(tmp_path / "policies", {"bob.example.toml": AES})
    (directory / "default.toml").symlink_to(elsewhere)
    async with watched(directory) as policies:
        elsewhere.write_text(PQC)
        policies.reload()
        await until(lambda: levels(policies, "x@y.example") == ("pqc",))


async def test_where_the_kernel_can_watch_no_more_files_are_looked_at_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: LogCapture
) -> None:
    add = Inotify.add
    limited = True

    def limited_add(self: Inotify, directory: Path | str) -> int:
        if limited:
            raise OSError(errno.ENOSPC, "No space left on device")
        return add(self, directory)

    def said(event: str) -> list[str]:
        return [entry.get("hint", "") for entry in log.entries if entry["event"] == event]

    monkeypatch.setattr(Inotify, "add", limited_add)
    write(tmp_path, {"default.toml": AES})
    async with watched(tmp_path) as policies:
        write(tmp_path, {"default.toml": PQC})
        await until(lambda: levels(policies) == ("pqc",))
        write(tmp_path, {"default.toml": AES})
        await until(lambda: levels(policies) == ("aes",))
        assert said("policies_not_watched") == ["raise fs.inotify.max_user_watches"]
        limited = False
        await until(lambda: bool(said("policies_watched_again")))
        write(tmp_path, {"default.toml": PQC})
        await until(lambda: levels(policies) == ("pqc",))


def test_without_a_watch_reading_again_is_at_once(tmp_path: Path) -> None:
    policies = PoliciesInForce(write(tmp_path, {"default.toml": AES}), PEERS)
    write(tmp_path, {"default.toml": PQC})
    policies.reload()
    assert levels(policies) == ("pqc",)
    write(tmp_path, {"default.toml": BROKEN})
    policies.reload()
    policies.reload()
    assert (levels(policies), len(policies.problems), count(policies, "broken")) == (("pqc",), 1, 1)
    with pytest.raises(ConfigError):
        PoliciesInForce(tmp_path, PEERS)
    write(tmp_path, {"default.toml": PQC})
    os.mkfifo(tmp_path / "bob.example.toml")
    policies.reload()
    assert [problem.partition(": ")[2][:18] for problem in policies.problems] == ["not a regular file"]


def test_what_is_read_again_is_as_if_all_had_been_read(tmp_path: Path) -> None:
    chance = random.Random(5)
    names = ["default.toml", "bob.example.toml", "bob.example/x.toml", "carol.example.toml"]
    folder = PolicyFolder(write(tmp_path, {"default.toml": AES}), PEERS)
    folder.read()
    for _ in range(300):
        changed = set(chance.choices(names, k=2))
        for name in changed:
            if chance.random() < 0.3:
                (tmp_path / name).unlink(missing_ok=True)
            else:
                write(tmp_path, {name: chance.choice([AES, PQC, "levels = [1]\n", BROKEN])})
        try:
            again, fault = (folder.read_again(changed) if chance.random() < 0.8 else folder.read()), ""
        except ConfigError as error:
            again, fault = None, str(error)
        if again is None:
            with pytest.raises(ConfigError) as caught:
                load_policies(tmp_path, PEERS)
            assert sorted(caught.value.problems) == sorted(fault.split("; ")) or str(caught.value) == fault
        else:
            fresh = load_policies(tmp_path, PEERS)
            assert (again.version, dict(again.files).keys()) == (fresh.version, dict(fresh.files).keys())
            assert all(again.files[name].policy == file.policy for name, file in fresh.files.items())


def test_what_no_file_says_any_more_is_let_go(tmp_path: Path) -> None:
    folder = PolicyFolder(write(tmp_path, {"bob.example.toml": AES, "carol.example.toml": AES}), PEERS)
    before = weakref.ref(folder.read().files["bob.example.toml"].policy)
    write(tmp_path, {"bob.example.toml": PQC})
    assert folder.read_again(["bob.example.toml"]).files["carol.example.toml"].policy is before()
    write(tmp_path, {"carol.example.toml": PQC})
    files = folder.read_again(["carol.example.toml"]).files
    assert files["bob.example.toml"].policy is files["carol.example.toml"].policy
    while folder.release():
        pass
    gc.collect()
    assert before() is None


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[DirectoryWatch]:
    """A watch that has been set up on a few files."""
    write(tmp_path, {"default.toml": AES, "bob.example/x.toml": AES, "README.md": ""})
    watch = DirectoryWatch(tmp_path)
    assert watch.follow(["", "bob.example"])
    assert watch.has_changes()
    assert not watch.has_changes()
    yield watch
    watch.close()


@pytest.mark.parametrize(
    "edit",
    [
        lambda top: write(top, {"default.toml": PQC}),
        lambda top: write(top, {"bob.example/x.toml": PQC}),
        lambda top: (top / "default.toml").unlink(),
        lambda top: (top / "default.toml").chmod(0),
        lambda top: (top / "README.md").rename(top / "a.example.toml"),
        lambda top: (top / "c.example").mkdir(),
        lambda top: (top / "bob.example" / "deep").mkdir(),
        lambda top: (top / "bob.example").rename(top / ".away"),
        lambda top: (top / "c.example").symlink_to("bob.example"),
        lambda top: (top / "..data").symlink_to("bob.example"),
        lambda top: shutil.rmtree(top),
        lambda top: shutil.copytree(top.rename(top.with_name("away")), top),
    ],
)
def test_each_edit_is_a_change(watching: DirectoryWatch, tmp_path: Path, edit: Callable[[Path], object]) -> None:
    edit(tmp_path)
    assert watching.has_changes()
    assert not watching.has_changes()


def test_a_directory_that_has_just_appeared_or_was_replaced_is_watched_too(
    watching: DirectoryWatch, tmp_path: Path
) -> None:
    directories = ["", "bob.example", "c.example"]
    write(tmp_path, {"c.example/y.toml": AES})
    shutil.rmtree(tmp_path / "bob.example")
    write(tmp_path, {"bob.example/x.toml": AES})
    assert watching.has_changes()
    assert watching.follow(directories), "what changed before is to be looked for once more"
    assert not watching.follow(directories)
    for name in ("c.example/z.toml", "bob.example/x.toml"):
        write(tmp_path, {name: PQC})
        assert watching.has_changes()
        assert not watching.has_changes()


def test_where_the_kernel_has_lost_events_files_are_looked_at(watching: DirectoryWatch, tmp_path: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 100_000:
        pytest.skip("it would take long to lose an event here")
    with (tmp_path / "default.toml").open("a") as one, (tmp_path / "bob.example" / "x.toml").open("a") as other:
        for _ in range(limit // 2 + 1):
            for file in (one, other):  # the same twice would be one event
                file.write(" ")
                file.flush()
    assert watching.has_changes()
    assert watching.written == [], "that they were closed is lost too"
    write(tmp_path, {"default.toml": PQC})
    assert watching.has_changes()


def test_files_that_somebody_is_writing_are_known_until_they_are_closed(
    watching: DirectoryWatch, tmp_path: Path
) -> None:
    with (tmp_path / "default.toml").open("a") as file, (tmp_path / "bob.example" / "x.toml").open("a") as other:
        for each in (file, other):
            each.write(" ")
            each.flush()
        assert watching.has_changes()
        assert sorted(watching.written) == ["bob.example/x.toml", "default.toml"]
        (tmp_path / "new.example").mkdir()
        assert watching.follow(["", "bob.example", "new.example"])
        assert sorted(watching.written) == ["bob.example/x.toml", "default.toml"]
        assert not watching.follow(["", "new.example"])
        assert watching.written == ["default.toml"]
    assert watching.has_changes()
    assert watching.written == []


async def test_an_edit_of_few_files_reads_no_others_and_never_on_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `sed -i` does it: each file by a temporary one beside it."""
    files = {f"bob.example/p{number}.toml": AES for number in range(300)}
    write(tmp_path, {"default.toml": AES} | files)
    read: list[str] = []
    threads = set()

    def counted(directory: str, name: str) -> FileText:
        read.append(name)
        threads.add(threading.current_thread())
        return read_file(directory, name)

    def looked(*of: Any) -> Listing:
        threads.add(threading.current_thread())
        return look(*of)

    look = Listing.of
    monkeypatch.setattr(policy_reload, "DOUBTFUL_S", 0.0)  # what is young is read twice
    async with watched(tmp_path) as policies:
        write(tmp_path, {"carol.example.toml": AES})
        await until(lambda: count(policies, "loaded") == 1)
        monkeypatch.setattr("relay.policy.load.read_file", counted)
        monkeypatch.setattr(Listing, "of", looked)
        edited = sorted(files)[:200]
        for name in edited:
            (tmp_path / "bob.example" / "sedAbCdEf").write_text(PQC)
            (tmp_path / "bob.example" / "sedAbCdEf").replace(tmp_path / name)
        await until(lambda: all(levels(policies, f"{name[12:-5]}@bob.example") == ("pqc",) for name in edited))
    assert sorted(read) == edited
    assert {thread.name for thread in threads} == {"watch"}


async def test_an_edit_before_the_kernel_watches_counts_without_another_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow = DirectoryWatch.follow

    def edited(self: DirectoryWatch, directories: Iterable[str]) -> bool:
        write(tmp_path, {"bob.example/x.toml": PQC})
        monkeypatch.setattr(DirectoryWatch, "follow", follow)
        return follow(self, directories)

    write(tmp_path, {"default.toml": AES, "bob.example/x.toml": AES})
    monkeypatch.setattr(policy_reload, "SHARE", 1e-9)
    monkeypatch.setattr(policy_reload, "DOUBTFUL_S", 0.0)
    async with watched(tmp_path) as policies:
        monkeypatch.setattr(DirectoryWatch, "follow", edited)
        await until(lambda: levels(policies) == ("pqc",))


async def test_files_edited_without_pause_come_into_force_once_and_as_a_whole(tmp_path: Path) -> None:
    write(tmp_path, {"default.toml": AES})
    async with watched(tmp_path) as policies:

        def edit() -> None:
            for number in range(300):
                write(tmp_path, {"default.toml": AES + f"# {number}\n", "bob.example.toml": AES})
            write(tmp_path, {"default.toml": PQC, "bob.example.toml": PQC})

        await asyncio.to_thread(edit)
        await until(lambda: levels(policies) == ("pqc",) and not policies.problems)
        assert count(policies, "loaded") < 10


async def test_edits_while_mail_flows_treat_every_mail_by_one_version_and_lose_none(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, log: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many mails, an edit about every 100 ms (by writing, by renaming, by swapping a link), one in three broken."""
    monkeypatch.setattr(policy_reload, "QUIET_S", 0.02)
    monkeypatch.setattr(policy_reload, "GATHER_S", 0.01)
    releases = tmp_path / "alice" / "releases"
    site = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address, policies={},
        kme_settings="cache_high = 500\n",
    )  # fmt: skip
    write(releases / "0", {"bob.example.toml": AES})
    link = site.directory / "policies"
    link.symlink_to(releases / "0")
    versions = {load_policies(link, {}).version: "aes"}
    done = asyncio.Event()

    def texts(number: int) -> dict[str, str]:
        if number % 3 == 2:
            return {"bob.example.toml": BROKEN}
        return {
            "bob.example.toml": f"levels = {['aes', 'plaintext'][number % 2 : number % 2 + 1]}\n# {number}\n".replace(
                "'", '"'
            )
        }

    async def edit() -> None:
        number = 0
        while not done.is_set():
            number += 1
            version_of = write(tmp_path / "same" / str(number), texts(number))
            if number % 3 != 2:
                policies = load_policies(version_of, {})
                versions[policies.version] = policies.decide("", "x@bob.example").levels[0]
            if number % 4 == 0:
                write(releases / str(number), texts(number))
                (tmp_path / "new").symlink_to(releases / str(number))
                (tmp_path / "new").replace(link)
            elif number % 2:
                write(link, texts(number))
            else:
                write(link, {".new": texts(number)["bob.example.toml"]})
                (link / ".new").replace(link / "bob.example.toml")
            try:
                async with asyncio.timeout(0.1):
                    await done.wait()
            except TimeoutError:
                pass

    async def send(relay: TCPAddress, numbers: range) -> None:
        for number in numbers:
            reply = await submit(relay, mails.plain(body=f"number {number}\r\n"))
            assert reply.code == 250, reply

    def sent() -> list[Any]:
        return [entry for entry in log.entries if entry["event"] in ("sealed_and_sent", "sent_in_clear")]

    def reported() -> bool:
        return any(entry["event"] == "policies_not_reloaded" for entry in log.entries)

    async with app.running(site.config) as addresses:
        mails_sent = sized(400, 1000)
        editor = asyncio.create_task(edit())
        await asyncio.gather(*(send(addresses["outgoing"], range(n, mails_sent, 10)) for n in range(10)))
        # A machine that was away had no quiet for an edit, or for a broken one, meanwhile.
        while len({entry["policy_version"] for entry in sent()}) < 2 or not reported():
            await send(addresses["outgoing"], range(mails_sent, mails_sent + 1))
            mails_sent += 1
        done.set()
        await editor
    assert len(sink.got) == len(sent()) == mails_sent
    assert all(entry["protection"] == versions[entry["policy_version"]] for entry in sent())
    in_clear = sum(b"number" in got.message for got in sink.got)
    assert in_clear == sum(entry["event"] == "sent_in_clear" for entry in sent())
    assert reported()


async def test_sighup_reads_the_policies_again(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, log: LogCapture
) -> None:
    elsewhere = write(tmp_path / "elsewhere", {"x.toml": AES}) / "x.toml"
    site = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address, policies={}
    )
    (site.directory / "policies").mkdir()
    (site.directory / "policies" / "bob.example.toml").symlink_to(elsewhere)
    async with app.running(site.config) as addresses:
        elsewhere.write_text('levels = ["plaintext"]\n')
        signal.raise_signal(signal.SIGHUP)
        await until(lambda: any(entry["event"] == "policies_loaded" for entry in log.entries))
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250
    assert any(entry["event"] == "sent_in_clear" for entry in log.entries)


# --- what ends no watch, and what is no whole set ---------------------------------------------------------------


async def test_no_edit_ends_the_watch_neither_a_link_to_itself_nor_a_directory_that_is_gone_for_a_while(
    tmp_path: Path,
) -> None:
    directory = write(tmp_path / "one", {"default.toml": AES})
    link = tmp_path / "policies"
    link.symlink_to("one")
    async with watched(link) as policies:
        for number, break_it in enumerate(["itself", "nowhere", "one/default.toml"], 1):
            link.unlink()
            link.symlink_to("policies" if break_it == "itself" else break_it)
            await until(lambda: bool(policies.problems))
            assert levels(policies) == ("aes",)
            link.unlink()
            link.symlink_to("one")
            write(directory, {"default.toml": PQC + f"# {number}\n", "bob.example.toml": PQC})
            await until(lambda: levels(policies) == ("pqc",))
            write(directory, {"default.toml": AES, "bob.example.toml": AES})
            await until(lambda: levels(policies) == ("aes",))


async def test_a_file_that_is_half_written_is_never_in_force_however_long_the_writer_takes(
    tmp_path: Path, log: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_reload, "LOUD_S", 0.0)
    rule = '[[when]]\nsender = "*@board.alice.example"\nlevels = ["otp"]\n'
    write(tmp_path, {"default.toml": AES + rule})
    seen = set()

    def board() -> tuple[str, ...]:
        seen.add(policies().decide("a@board.alice.example", "x@bob.example").levels)
        return policies().decide("a@board.alice.example", "x@bob.example").levels

    def waits() -> bool:
        board()
        return any(entry["event"] == "policies_not_quiet" and entry["open_for_writing"] for entry in log.entries)

    async with watched(tmp_path) as policies:
        write(tmp_path, {"carol.example.toml": AES})
        await until(lambda: count(policies, "loaded") == 1)
        with (tmp_path / "default.toml").open("w") as file:
            file.write(AES)
            file.flush()
            await until(lambda: waits() or len(seen) > 1)
            file.write("# half\n")
            file.flush()
            await until(lambda: waits() or len(seen) > 1)
            file.write(rule.replace('"otp"', '"otp", "aes"'))
        await until(lambda: board() == ("otp", "aes"))
    assert seen == {("otp",), ("otp", "aes")}


async def test_files_behind_links_that_lead_elsewhere_count_without_being_asked_for(tmp_path: Path) -> None:
    elsewhere = write(tmp_path / "elsewhere", {"x.toml": AES, "domain/y.toml": AES, "other/y.toml": PQC})
    directory = write(tmp_path / "policies", {"bob.example.toml": AES})
    (directory / "default.toml").symlink_to(elsewhere / "x.toml")
    (elsewhere / "hop").symlink_to("domain")
    (directory / "bob.example").symlink_to(elsewhere / "hop")
    async with watched(directory) as policies:
        (elsewhere / "x.toml").write_text(PQC)
        await until(lambda: levels(policies, "x@y.example") == ("pqc",))
        (elsewhere / "domain" / "y.toml").write_text('levels = ["otp"]\n')
        await until(lambda: levels(policies, "y@bob.example") == ("otp",))
        (elsewhere / "new").symlink_to("other")
        (elsewhere / "new").replace(elsewhere / "hop")
        await until(lambda: levels(policies, "y@bob.example") == ("pqc",))
        (elsewhere / "other" / "y.toml").write_text(AES)
        await until(lambda: levels(policies, "y@bob.example") == ("aes",))


async def test_a_file_with_several_names_is_edited_by_all_of_them_at_once(tmp_path: Path) -> None:
    """As editors that keep hard links do it, and copies of sets by `cp -al`."""
    directory = write(tmp_path / "policies", {"default.toml": AES, "bob.example.toml": AES})
    elsewhere = tmp_path / "copy.toml"
    async with watched(directory) as policies:
        write(directory, {"default.toml": PQC})
        await until(lambda: levels(policies, "x@y.example") == ("pqc",))
        os.link(directory / "bob.example.toml", directory / "carol.example.toml")
        await until(lambda: levels(policies, "x@carol.example") == ("aes",))
        write(directory, {"bob.example.toml": PQC})
        await until(lambda: levels(policies) == ("pqc",))
        assert levels(policies, "x@carol.example") == ("pqc",)
        (directory / "carol.example.toml").unlink()
        (directory / "bob.example.toml").rename(elsewhere)
        os.link(elsewhere, directory / "bob.example.toml")
        await until(lambda: "carol.example.toml" not in policies().files)
        elsewhere.write_text('levels = ["otp"]\n')
        await until(lambda: levels(policies) == ("otp",))


async def test_after_anything_unforeseen_edits_count_again(
    tmp_path: Path, log: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"default.toml": AES})
    read_again = PolicyFolder.read_again
    failing = True

    def unforeseen(self: PolicyFolder, *of: Any) -> PolicySet:
        if failing:
            raise RuntimeError("unforeseen")
        return read_again(self, *of)

    async with watched(tmp_path) as policies:
        monkeypatch.setattr(PolicyFolder, "read_again", unforeseen)
        write(tmp_path, {"default.toml": PQC})
        await until(lambda: any("unforeseen" in entry.get("cause", "") for entry in log.entries))
        assert levels(policies) == ("aes",)
        failing = False
        await until(lambda: levels(policies) == ("pqc",))


async def test_a_file_that_cannot_be_read_to_its_end_counts_when_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"default.toml": AES})
    asked, answers = threading.Event(), threading.Event()

    def hangs(directory: str, name: str) -> FileText:
        asked.set()
        answers.wait()
        return read_file(directory, name)

    async with watched(tmp_path) as policies:
        monkeypatch.setattr("relay.policy.load.read_file", hangs)
        try:
            write(tmp_path, {"default.toml": PQC})
            await until(asked.is_set)
            assert levels(policies) == ("aes",)
        finally:
            answers.set()
        await until(lambda: levels(policies) == ("pqc",))


async def test_a_link_to_a_directory_that_is_not_there_is_an_error_until_it_is(tmp_path: Path, log: LogCapture) -> None:
    """Else the persons whose files should be there would fall to the file of their domain."""
    directory, elsewhere = tmp_path / "policies", tmp_path / "elsewhere"
    write(directory, {"default.toml": AES})
    (directory / "bob.example").symlink_to(elsewhere)
    with pytest.raises(ConfigError, match=r"bob\.example: cannot be read: No such file"):
        load_policies(directory, PEERS)
    (directory / "bob.example").unlink()
    async with watched(directory) as policies:
        (directory / "bob.example").symlink_to(elsewhere)
        await until(lambda: "bob.example: cannot be read" in " ".join(policies.problems))
        write(elsewhere, {"x.toml": PQC})
        await until(lambda: levels(policies) == ("pqc",))
        assert policies.problems == ()
        (directory / "c.example").symlink_to("nowhere")
        await until(lambda: "c.example: cannot be read" in " ".join(policies.problems))
        (directory / "c.example").unlink()
        await until(lambda: policies.problems == ())
