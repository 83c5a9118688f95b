"""A relay is killed, stopped or cannot write while keys are on their way to it: every mail is opened afterwards.
Standard: ETSI GS QKD 014 V1.1.1, 5.4: a key that its KME has given away cannot be had again.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import socket
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from relay.config import TCPAddress
from relay.key_receiver import _serve
from relay.key_receiver.receiver import Delivered, ReceiverHere, frame, read_frame
from relay.keys import Key
from relay.keys.http import HTTPRequest
from relay.kme import DevelopmentKMEs
from relay.process import app, assembly
from relay.store.secret import SiteSecret
from relay.store.spool import Spool
from tests.testlib import mails, relay_command
from tests.testlib.alarms import standing
from tests.testlib.sink import Sink
from tests.testlib.sites import SOON_LOCKED_OUT, DidNotStart, RelayProcess, Site, make_site, relay_process
from tests.testlib.submit import submit
from tests.testlib.wire import Wire

QUICK = "timeout = 1\npool_maxsize = 2\nlag_patience = 0\nprefetch = false\n"
"""Nothing else is asked of the KME meanwhile, whose answer could be taken for the one that is to be held."""


@pytest.fixture
async def several(tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink) -> list[bytes]:
    """Mails that Alice has sealed for Bob, each under a key of its own."""
    site = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address)
    async with app.running(site.config) as addresses:
        for _ in range(3):
            assert (await submit(addresses["outgoing"], mails.plain())).code == 250
    return [got.message for got in wire.got]


@pytest.fixture
def sealed(several: list[bytes]) -> bytes:
    """One of them."""
    return several[0]


@pytest.fixture
async def to_kme(kmes: DevelopmentKMEs) -> AsyncIterator[Wire]:
    """Between Bob's relay and KME."""
    async with Wire(TCPAddress("127.0.0.1", urlsplit(kmes.urls[1]).port or 443)) as between:
        yield between


@pytest.fixture
def bob(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, to_kme: Wire) -> Site:
    url = f"https://{to_kme.address}"
    return make_site(
        tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=url, incoming=sink.address, kme_settings="timeout = 2\n"
    )


def when_given(kmes: DevelopmentKMEs, happens: Callable[[], None] = lambda: None) -> asyncio.Queue[str]:
    """Calls `happens` at the moment when a KME has given a key of Alice's away; these come as they are given."""
    given: asyncio.Queue[str] = asyncio.Queue()
    deliver = kmes.link.deliver

    def watched(key_ids: Sequence[str], *, master: str, slave: str | None) -> list[Key]:
        keys = deliver(key_ids, master=master, slave=slave)
        if master != slave:  # else it is a trial of the relay's
            happens()
            for key_ID in key_ids:
                given.put_nowait(key_ID)
        return keys

    kmes.link.deliver = watched  # type: ignore[method-assign]
    return given


def lock(other: sqlite3.Connection) -> None:
    """Nobody else can write from now on."""
    other.execute("BEGIN IMMEDIATE")


def key_receiver(relay: RelayProcess) -> int:
    """The process that asks for its received keys."""
    [child] = Path(f"/proc/{relay.process.pid}/task/{relay.process.pid}/children").read_text().split()
    return int(child)


def left_in_spool(site: Site, key_IDs: Sequence[str], keys: Sequence[Key], secret: SiteSecret | None = None) -> None:
    """As if a command of this site had been killed that had just read these keys of Alice's."""
    reply = {"keys": [{"key_ID": key.key_ID, "key": base64.b64encode(key.key).decode()} for key in keys]}
    delivered = Delivered("alice-bob", "etsi014", "2", tuple(key_IDs), json.dumps(reply).encode())
    spool = Spool(site.directory / "keys.spool", secret or SiteSecret.load(site.config.store.secret))
    spool.append(delivered.encoded())
    spool.close()


def runs(process: int) -> bool:
    """Whether it has not ended; who ended may still wait for somebody to see that."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def wrong(site: Site) -> dict[str, list[str]]:
    """What `check` says is wrong."""
    _, _, out = await relay_command.run("check", "--json", "--config", site.config_file)
    return {found["what"]: found["problems"] for found in json.loads(out) if found["problems"]}


async def opened_in_the_end(relay: RelayProcess, sealed: bytes) -> None:
    """Sends the mail until it is taken, as a mail server does."""
    async with asyncio.timeout(30):
        while (await submit(relay.addresses["incoming"], sealed)).code != 250:
            await asyncio.sleep(0.2)


async def report_under(secret_id: str, bob: Site) -> None:
    """Waits until the relay that serves has written down that this is its newest site secret."""
    async with asyncio.timeout(30):
        while not (file := bob.directory / "keys.json").exists() or secret_id not in file.read_text():
            await asyncio.sleep(0.05)


@pytest.mark.promise("A killed relay loses no received key")
async def test_a_relay_that_is_killed_while_its_key_is_on_the_way_opens_the_mail_when_it_is_back(
    bob: Site, kmes: DevelopmentKMEs, to_kme: Wire, sealed: bytes, sink: Sink
) -> None:
    given = when_given(kmes, to_kme.hold_answers)
    async with relay_process(bob) as relay:
        sending = asyncio.create_task(submit(relay.addresses["incoming"], sealed))
        await given.get()
        relay.kill()
        await relay.process.wait()
        await asyncio.gather(sending, return_exceptions=True)
    to_kme.let_answers_go()
    async with relay_process(bob) as relay:
        await opened_in_the_end(relay, sealed)
    assert [got.message.endswith(mails.plain()) for got in sink.got] == [True]


async def reasons(site: Site) -> list[str]:
    """Why there is something in quarantine."""
    async with assembly.parts(site.config, prefetch=False) as parts:
        return [each.reason for each in await parts.store.quarantine.all()]


@pytest.mark.promise("A killed relay loses no received key")
async def test_where_all_processes_are_killed_while_a_key_is_on_the_way_its_mail_is_put_aside_at_once(
    bob: Site, kmes: DevelopmentKMEs, to_kme: Wire, several: list[bytes], sink: Sink
) -> None:
    """As `systemctl kill --signal=KILL` does. The key is spent: to wait for it for days would help nobody."""
    holding = iter([to_kme.hold_answers])
    given = when_given(kmes, lambda: next(holding, lambda: None)())
    async with relay_process(bob) as relay:
        sending = asyncio.create_task(submit(relay.addresses["incoming"], several[0]))
        await given.get()
        os.kill(key_receiver(relay), signal.SIGKILL)
        relay.kill()
        await relay.process.wait()
        await asyncio.gather(sending, return_exceptions=True)
    to_kme.let_answers_go()
    async with relay_process(bob) as relay:
        await opened_in_the_end(relay, several[0])
        assert "keys_lost_on_the_way" in relay.log
        # Whatever was not asked for then is as good as ever, and no key that is only late is taken for lost.
        await opened_in_the_end(relay, several[1])
    assert [got.message.endswith(mails.plain()) for got in sink.got] == [True]
    assert await reasons(bob) == ["key-lost"]


async def test_where_the_second_process_alone_is_killed_the_mail_under_its_key_is_put_aside_and_that_is_said(
    bob: Site, kmes: DevelopmentKMEs, to_kme: Wire, several: list[bytes], sink: Sink
) -> None:
    """The relay itself lives on and ends its mails; what it says is so."""
    holding = iter([to_kme.hold_answers])
    given = when_given(kmes, lambda: next(holding, lambda: None)())
    async with relay_process(bob) as relay:
        sending = asyncio.create_task(submit(relay.addresses["incoming"], several[0]))
        await given.get()
        os.kill(key_receiver(relay), signal.SIGKILL)
        assert (await sending).code == 451
        async with asyncio.timeout(20):
            assert await relay.process.wait() == 1
        log = relay.log
    to_kme.let_answers_go()
    async with relay_process(bob) as relay:
        await opened_in_the_end(relay, several[0])
        await opened_in_the_end(relay, several[1])
        log += relay.log
    assert await reasons(bob) == ["key-lost"]
    assert [got.message.endswith(mails.plain()) for got in sink.got] == [True]
    assert "replies that were on their way to it are lost" in log
    assert "the process that asked for it was killed before it had read the reply" in log
    assert "all processes" not in log
    assert "from now on" not in log


@pytest.mark.promise("A killed relay loses no received key")
async def test_a_key_that_was_asked_for_in_vain_before_all_processes_were_killed_is_waited_for(
    bob: Site, kmes: DevelopmentKMEs, several: list[bytes], sink: Sink
) -> None:
    """The KME has said that it does not know it: it is late, and not spent."""
    link = dict(kmes.link.waiting)
    kmes.link.waiting.clear()
    async with relay_process(bob) as relay:
        assert (await submit(relay.addresses["incoming"], several[0])).code == 451
        os.kill(key_receiver(relay), signal.SIGKILL)
        relay.kill()
        await relay.process.wait()
    async with relay_process(bob) as relay:
        assert (await submit(relay.addresses["incoming"], several[0])).code == 451
        kmes.link.waiting.update(link)
        await opened_in_the_end(relay, several[0])
    assert [got.message.endswith(mails.plain()) for got in sink.got] == [True]


async def test_a_key_that_its_kme_gives_again_after_all_processes_were_killed_opens_its_mail(
    bob: Site, kmes: DevelopmentKMEs, to_kme: Wire, sealed: bytes, sink: Sink
) -> None:
    """It was asked for, and the KME did not hear that, or does not mind."""
    link = dict(kmes.link.waiting)
    holding = iter([to_kme.hold_answers])
    given = when_given(kmes, lambda: next(holding, lambda: None)())
    async with relay_process(bob) as relay:
        sending = asyncio.create_task(submit(relay.addresses["incoming"], sealed))
        await given.get()
        os.kill(key_receiver(relay), signal.SIGKILL)
        relay.kill()
        await relay.process.wait()
        await asyncio.gather(sending, return_exceptions=True)
    to_kme.let_answers_go()
    kmes.link.take_back(link)
    async with relay_process(bob) as relay:
        await opened_in_the_end(relay, sealed)
    assert [got.message.endswith(mails.plain()) for got in sink.got] == [True]


async def test_a_relay_that_the_watchdog_ends_while_its_key_is_on_the_way_opens_the_mail_when_it_is_back(
    bob: Site, kmes: DevelopmentKMEs, to_kme: Wire, sealed: bytes, sink: Sink
) -> None:
    """systemd sends SIGABRT to all processes of the service."""
    given = when_given(kmes, to_kme.hold_answers)
    async with relay_process(bob) as relay:
        sending = asyncio.create_task(submit(relay.addresses["incoming"], sealed))
        await given.get()
        receiver = key_receiver(relay)
        for process in (receiver, relay.process.pid):
            os.kill(process, signal.SIGABRT)
        assert await relay.process.wait() == -signal.SIGABRT
        assert runs(receiver)
        await asyncio.gather(sending, return_exceptions=True)
    to_kme.let_answers_go()
    async with relay_process(bob) as relay:
        await opened_in_the_end(relay, sealed)
    assert [got.message.endswith(mails.plain()) for got in sink.got] == [True]


async def test_a_key_that_comes_when_nobody_waits_for_it_any_more_is_kept(
    bob: Site, kmes: DevelopmentKMEs, to_kme: Wire, sealed: bytes, sink: Sink
) -> None:
    when_given(kmes, to_kme.hold_answers)
    async with relay_process(bob) as relay:
        assert (await submit(relay.addresses["incoming"], sealed)).code == 451
        to_kme.let_answers_go()
        await opened_in_the_end(relay, sealed)
    assert [got.message.endswith(mails.plain()) for got in sink.got] == [True]


@pytest.mark.promise("A killed relay loses no received key")
async def test_a_relay_that_is_stopped_while_its_store_is_locked_opens_the_mail_when_it_is_back(
    bob: Site, kmes: DevelopmentKMEs, sealed: bytes, sink: Sink
) -> None:
    other = sqlite3.connect(bob.directory / "relay.db", isolation_level=None)
    given = when_given(kmes, lambda: lock(other))
    async with relay_process(bob, before=SOON_LOCKED_OUT) as relay:
        sending = asyncio.create_task(submit(relay.addresses["incoming"], sealed))
        await given.get()
        relay.process.terminate()
        await relay.process.wait()
        await asyncio.gather(sending, return_exceptions=True)
    other.close()
    async with relay_process(bob) as relay:
        await opened_in_the_end(relay, sealed)
    assert [got.message.endswith(mails.plain()) for got in sink.got] == [True]


@pytest.mark.promise("A killed relay loses no received key")
async def test_no_key_is_asked_for_while_the_store_cannot_be_written(
    bob: Site, kmes: DevelopmentKMEs, several: list[bytes], sink: Sink
) -> None:
    given = when_given(kmes)
    async with relay_process(bob, before=SOON_LOCKED_OUT) as relay:
        other = sqlite3.connect(bob.directory / "relay.db", isolation_level=None)
        lock(other)
        several = several[:2]
        # The first may have its key asked for, when the store was seen to be well a moment ago.
        replies = [(await submit(relay.addresses["incoming"], each)).code for each in several]
        assert replies == [451] * len(several)
        assert given.qsize() <= 1
        other.close()
        for each in several:
            await opened_in_the_end(relay, each)
    assert [got.message.endswith(mails.plain()) for got in sink.got] == [True] * len(several)


@pytest.mark.promise("A killed relay loses no received key")
async def test_a_relay_whose_key_receiver_was_killed_ends_its_mails_says_so_and_starts_anew(
    bob: Site, several: list[bytes], sink: Sink
) -> None:
    """Without that process a kill would lose keys: the service manager starts both again."""
    sink.gate = asyncio.Event()
    async with relay_process(bob) as relay:
        sending = asyncio.create_task(submit(relay.addresses["incoming"], several[0]))
        await sink.reached.wait()
        os.kill(key_receiver(relay), signal.SIGKILL)
        async with asyncio.timeout(20):
            while "serving relay" not in (found := await wrong(bob)):
                await asyncio.sleep(0.02)
        assert "has ended" in found["serving relay"][0]
        assert "key_receiver_ended" in relay.log
        sink.gate.set()
        assert (await sending).code == 250
        async with asyncio.timeout(20):
            assert await relay.process.wait() == 1
        assert relay.log.splitlines()[-1].startswith("Stopped: ")
    sink.gate = None
    async with relay_process(bob) as relay:
        await opened_in_the_end(relay, several[1])
        assert "serving relay" not in await wrong(bob)
    assert [got.message.endswith(mails.plain()) for got in sink.got] == [True] * 2


async def test_a_relay_that_is_stopped_ends_well_though_its_key_receiver_is_killed_meanwhile(
    bob: Site, sealed: bytes, sink: Sink
) -> None:
    sink.gate = asyncio.Event()
    async with relay_process(bob) as relay:
        receiver = key_receiver(relay)
        sending = asyncio.create_task(submit(relay.addresses["incoming"], sealed))
        await sink.reached.wait()
        relay.process.terminate()
        async with asyncio.timeout(20):
            while "relay_stops" not in relay.log:
                await asyncio.sleep(0.02)
        os.kill(receiver, signal.SIGKILL)
        sink.gate.set()
        assert (await sending).code == 250
        assert await relay.process.wait() == 0


async def test_a_relay_whose_key_receiver_cannot_begin_ends_before_it_draws_a_key(
    bob: Site, kmes: DevelopmentKMEs, sealed: bytes
) -> None:
    before = kmes.link.issued.total()
    with pytest.raises(DidNotStart, match="Stopped: "):
        async with relay_process(bob, before="from relay import key_receiver; key_receiver.km_client = None"):
            pass
    assert kmes.link.issued.total() == before


async def test_calls_that_a_kme_leaves_unanswered_are_in_nobodys_way_and_are_still_listened_to(
    bob: Site, kmes: DevelopmentKMEs, to_kme: Wire, several: list[bytes], sink: Sink
) -> None:
    text = bob.config_file.read_text()
    bob.config_file.write_text(text.replace("timeout = 2\n", QUICK))
    holding = iter([to_kme.hold_answers] * 2)
    given = when_given(kmes, lambda: next(holding, lambda: None)())
    async with relay_process(bob, before="from relay.key_receiver import receiver; receiver.READS_ON_S = 300") as relay:
        for sealed in several[:2]:
            sending = asyncio.create_task(submit(relay.addresses["incoming"], sealed))
            await given.get()
            await to_kme.holding()
            to_kme.let_new_answers_go()
            assert (await sending).code == 451
        await opened_in_the_end(relay, several[2])
        assert len(sink.got) == 1
        to_kme.let_answers_go()
        for sealed in several[:2]:
            await opened_in_the_end(relay, sealed)
    assert [got.message.endswith(mails.plain()) for got in sink.got] == [True] * 3


async def test_what_a_dead_process_has_left_is_taken_over_though_the_second_process_is_frozen(
    bob: Site, kmes: DevelopmentKMEs, sealed: bytes, sink: Sink
) -> None:
    async with relay_process(
        bob, before="from relay.key_receiver import receiver; receiver.HAND_OVER_S = 0.2"
    ) as relay:
        frozen = key_receiver(relay)
        os.kill(frozen, signal.SIGSTOP)
        try:
            key_IDs = tuple(name for name, issued in kmes.link.waiting.items() if "1" in issued.waiting)
            keys = kmes.link.deliver(key_IDs, master="2", slave="1")
            left_in_spool(bob, key_IDs, keys)
            await opened_in_the_end(relay, sealed)
        finally:
            os.kill(frozen, signal.SIGCONT)
    assert [got.message.endswith(mails.plain()) for got in sink.got] == [True]


async def test_a_second_process_that_is_frozen_is_named_by_an_alarm_and_no_kme_is(
    bob: Site, several: list[bytes], sink: Sink
) -> None:
    """Mail waits meanwhile, and no key is asked for twice afterwards."""
    soon = (
        "import relay.key_receiver; from relay.key_receiver import receiver\n"
        "relay.key_receiver.TAKE_OVER_S = 0.1; receiver.SILENT_S = 3.0\n"
        "from relay.status import alarms, ready; alarms.LOOK_S = ready.LOOK_S = 0.2"
    )
    async with relay_process(bob, before=soon) as relay:
        frozen = key_receiver(relay)
        os.kill(frozen, signal.SIGSTOP)
        try:
            # Before the silence is noticed, and after it.
            assert [(await submit(relay.addresses["incoming"], each)).code for each in several] == [451] * 3
            async with asyncio.timeout(30):
                while "alarm key_receiver_silent" not in (found := await wrong(bob)):
                    await asyncio.sleep(0.1)
            assert "`relay keys`" in found["alarm key_receiver_silent"][0]
            assert [(await submit(relay.addresses["incoming"], each)).code for each in several] == [451] * 3
            assert not {each["alarm"] for each in standing(bob)}.intersection(("kme_away", "received_keys_refused"))
        finally:
            os.kill(frozen, signal.SIGCONT)
        for each in several:
            await opened_in_the_end(relay, each)
        async with asyncio.timeout(30):
            while "key_receiver_silent" in {each["alarm"] for each in standing(bob)}:
                await asyncio.sleep(0.1)
    assert [got.message.endswith(mails.plain()) for got in sink.got] == [True] * 3
    assert await reasons(bob) == []


async def test_a_secret_is_not_given_up_while_a_key_that_waits_is_under_it(
    bob: Site, kmes: DevelopmentKMEs, sealed: bytes, sink: Sink
) -> None:
    path = bob.config.store.secret
    before = SiteSecret.load_or_create(path)
    key_IDs = tuple(name for name, issued in kmes.link.waiting.items() if "1" in issued.waiting)
    left_in_spool(bob, key_IDs, kmes.link.deliver(key_IDs, master="2", slave="1"))
    held = Spool(bob.directory / "keys.spool", before)
    held.ready()
    rotated = await relay_command.run("keys", "rotate-secret", "--config", bob.config_file)
    assert rotated[0] == 0
    status, said, _ = await relay_command.run("keys", "reseal", "--config", bob.config_file)
    assert (status, "is under an older secret" in said) == (1, True), "somebody holds a file of it still"
    held.close()
    (bob.directory / "keys.spool" / "0.spool").mkdir()
    status, said, _ = await relay_command.run("keys", "reseal", "--config", bob.config_file)
    assert (status, "0.spool: Is a directory" in said) == (1, True), "what cannot be read may be under it"
    (bob.directory / "keys.spool" / "0.spool").rmdir()
    status, said, _ = await relay_command.run("keys", "reseal", "--config", bob.config_file)
    assert (status, said) == (0, "")
    path.write_text(path.read_text().splitlines()[0] + "\n")
    async with relay_process(bob) as relay:
        await opened_in_the_end(relay, sealed)
    assert [got.message.endswith(mails.plain()) for got in sink.got] == [True]


async def test_a_secret_is_not_given_up_while_a_relay_that_serves_seals_under_it(bob: Site) -> None:
    async with relay_process(bob):
        await report_under(SiteSecret.load(bob.config.store.secret).ids[0], bob)
        assert (await relay_command.run("keys", "rotate-secret", "--config", bob.config_file))[0] == 0
        status, said, _ = await relay_command.run("keys", "reseal", "--config", bob.config_file)
        assert (status, "restart it, then run this again" in said) == (1, True)
    async with relay_process(bob):
        await report_under(SiteSecret.load(bob.config.store.secret).ids[0], bob)
        assert (await relay_command.run("keys", "reseal", "--config", bob.config_file))[0] == 0


async def test_check_tells_how_many_keys_wait_and_whether_more_could_be_written(
    bob: Site, kmes: DevelopmentKMEs, sealed: bytes, tmp_path: Path
) -> None:
    SiteSecret.load_or_create(bob.config.store.secret)
    left_in_spool(bob, ("one", "two"), [Key("one", bytes(32)), Key("two", bytes(32))])

    async def told() -> dict[str, Any]:
        _, _, out = await relay_command.run("check", "--json", "--config", bob.config_file)
        [found] = [each for each in json.loads(out) if each["what"] == "received keys"]
        return dict(found)

    found = await told()
    assert "2 keys wait" in found["detail"]
    assert found["problems"] == []
    assert len(list((bob.directory / "keys.spool").iterdir())) == 1
    left_in_spool(bob, ("three",), [Key("three", bytes(32))], SiteSecret(bytes(32)))
    [problem] = (await told())["problems"]
    assert f"under site secret {SiteSecret(bytes(32)).ids[0]}" in problem
    spool = bob.directory / "keys.spool"
    shutil.rmtree(spool)
    spool.symlink_to("/proc/self/task", target_is_directory=True)
    [problem] = (await told())["problems"]
    assert "no KME is asked" in problem


async def test_a_relay_leaves_no_process_and_no_file_behind(bob: Site, sealed: bytes, sink: Sink) -> None:
    async with relay_process(bob) as relay:
        assert (await submit(relay.addresses["incoming"], sealed)).code == 250
        receiver = key_receiver(relay)
    async with asyncio.timeout(10):
        while runs(receiver):
            await asyncio.sleep(0.02)
    assert not list((bob.directory / "keys.spool").iterdir())


async def test_a_disk_that_stalls_while_keys_are_handed_over_keeps_no_other_call_waiting(
    bob: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    stalled, begun = asyncio.Event(), list[int]()

    async def hand_over(_: ReceiverHere) -> None:
        begun.append(len(begun))
        if len(begun) == 1:
            await stalled.wait()

    monkeypatch.setattr(ReceiverHere, "hand_over", hand_over)
    SiteSecret.load_or_create(bob.config.store.secret)
    ours, theirs = socket.socketpair()
    serving = asyncio.create_task(_serve(theirs, bob.config))
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    for number in (1, 2):
        writer.write(frame({"number": number, "hand_over": True}))
    for expected in (2, 1):
        async with asyncio.timeout(30):
            answer = await read_frame(reader)
        assert answer is not None
        assert answer[0] == {"number": expected}
        stalled.set()
    writer.close()
    await writer.wait_closed()
    await serving


async def test_the_second_process_ends_with_none_of_its_connections_left(bob: Site, to_kme: Wire) -> None:
    SiteSecret.load_or_create(bob.config.store.secret)
    ours, theirs = socket.socketpair()
    before = asyncio.all_tasks()
    serving = asyncio.create_task(_serve(theirs, bob.config))
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    [kme] = bob.config.kmes
    status = HTTPRequest("GET", "/api/v1/keys/site-alice/status", sae="site-alice")
    writer.write(frame({"number": 1, "kme": kme, "request": status.as_json(), "within": 30, "patience": 30}))
    async with asyncio.timeout(30):
        assert await read_frame(reader) is not None
    writer.close()
    await writer.wait_closed()
    await serving
    assert to_kme.sent
    assert not {each for each in asyncio.all_tasks() - before if each.get_name() == "open connections"}
    async with asyncio.timeout(30):
        while to_kme.connections:
            await asyncio.sleep(0.01)
