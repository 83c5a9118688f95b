"""Edits while the relay runs: a whole new set or none, however the edit is made, and mail keeps the set it began with.
Standard: waiting is for the new set or a counter, never for a time.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import LogCapture

from relay import app
from relay.config import TCPAddress
from relay.errors import ConfigError
from relay.kme import DevelopmentKMEs
from relay.policy import load_policies
from relay.policy import watch as policy_watch
from relay.policy.load import PolicyFolder
from relay.policy.metrics import PolicyMetrics
from relay.policy.reload import PoliciesInForce
from relay.policy.watch import changed_names
from tests.test_policy import AES, PEERS, write
from tests.test_refusals import log as log  # a fixture
from tests.testlib import mails
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site
from tests.testlib.submit import submit

PQC = 'levels = ["pqc"]\n'
BROKEN = "levels = [\n"


async def until(true: Callable[[], bool]) -> None:
    """Waits for what a watched directory leads to; fails after 20 s."""
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)


def levels(policies: PoliciesInForce, recipient: str = "x@bob.example") -> tuple[str, ...]:
    return policies().decide("", recipient).levels


def count(policies: PoliciesInForce, outcome: str) -> float:
    value = policies.metrics.registry.get_sample_value("qumail_policy_reloads_total", {"outcome": outcome})
    return value or 0.0


@asynccontextmanager
async def watched(directory: Path) -> AsyncIterator[PoliciesInForce]:
    """The policies of a directory, with edits taken up."""
    policies = PoliciesInForce(directory, PEERS, PolicyMetrics(CollectorRegistry()))
    task = asyncio.create_task(policies.watch())
    try:
        yield policies
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


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
        assert policies.metrics.registry.get_sample_value("qumail_policy_problems") == 1
        write(tmp_path, {"default.toml": AES})
        await until(lambda: not policies.problems)
        assert levels(policies) == ("aes",)
        assert policies.metrics.registry.get_sample_value("qumail_policy_files") == 2
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


async def test_where_the_kernel_can_watch_no_more_files_are_looked_at_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: LogCapture
) -> None:
    def too_many(*_: object, **__: object) -> None:
        raise RuntimeError("OS file watch limit reached")

    monkeypatch.setattr(policy_watch, "awatch", too_many)
    monkeypatch.setattr(policy_watch, "RETRY_S", 0.02)
    write(tmp_path, {"default.toml": AES})
    async with watched(tmp_path) as policies:
        write(tmp_path, {"default.toml": PQC})
        await until(lambda: levels(policies) == ("pqc",))
        write(tmp_path, {"default.toml": AES})
        await until(lambda: levels(policies) == ("aes",))
    assert [entry["cause"] for entry in log.entries if entry["event"] == "policies_not_watched"] == [
        "OS file watch limit reached"
    ]


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


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["default.toml", "bob.example/x.toml"], {"default.toml", "bob.example/x.toml"}),
        ([".x.swp", "README.md", "4913", "default.toml~", ".git/index", "bob.example/.x", "a/b/c.toml"], set()),
        (["bob.example"], None),
        (["..data"], None),
        (["bob.example.TOML"], None),
        (["."], None),
    ],
)
def test_what_a_changed_path_means(tmp_path: Path, paths: list[str], expected: set[str] | None) -> None:
    assert changed_names(tmp_path, [tmp_path / path for path in paths], ["bob.example/x.toml"]) == expected


async def test_a_file_edited_without_pause_is_taken_up_and_nothing_piles_up(tmp_path: Path) -> None:
    write(tmp_path, {"default.toml": AES})
    async with watched(tmp_path) as policies:
        await until(lambda: count(policies, "loaded") == 0)

        def edit() -> None:
            for number in range(3000):
                write(tmp_path, {"default.toml": AES + f"# {number}\n", "bob.example.toml": AES})
            write(tmp_path, {"default.toml": PQC, "bob.example.toml": PQC})

        await asyncio.to_thread(edit)
        await until(lambda: levels(policies) == ("pqc",) and not policies.problems)
        assert count(policies, "loaded") < 200


async def test_edits_while_mail_flows_treat_every_mail_by_one_version_and_lose_none(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, log: LogCapture
) -> None:
    """1,000 mails, an edit about every 100 ms (by writing, by renaming, by swapping a link), one in three broken."""
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

    async with app.running(site.config) as addresses:
        editor = asyncio.create_task(edit())
        await asyncio.gather(*(send(addresses["outgoing"], range(n, 1000, 10)) for n in range(10)))
        done.set()
        await editor
    sent = [entry for entry in log.entries if entry["event"] in ("sealed_and_sent", "sent_in_clear")]
    assert len(sink.got) == len(sent) == 1000
    assert all(entry["protection"] == versions[entry["policy_version"]] for entry in sent)
    in_clear = sum(b"number" in got.message for got in sink.got)
    assert in_clear == sum(entry["event"] == "sent_in_clear" for entry in sent)
    assert len({entry["policy_version"] for entry in sent}) > 1
    assert any(entry["event"] == "policies_not_reloaded" for entry in log.entries)


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
