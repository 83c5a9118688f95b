"""What each mail leaves in the audit record, at both sites: who got it, how it was protected, and that no kill loses it.
Standard: deploy/AUDIT.md; each test looks at the files that a relay has written.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os
import signal
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import LogCapture

from relay.audit.entries import AddressHash
from relay.audit.reading import records
from relay.audit.verifying import verify
from relay.audit.writing import ANNOUNCED_SUFFIX
from relay.config import TCPAddress
from relay.errors import ConfigError
from relay.formats import mime
from relay.kme import DevelopmentKMEs
from relay.process import app
from relay.store.record_files import contents
from relay.store.secret import SiteSecret
from relay.store.secret_file import locked
from tests.testlib import mails
from tests.testlib.identities import Identities
from tests.testlib.relay_command import run, workers_of
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site, relay_process
from tests.testlib.submit import submit


def of(site: Site) -> list[dict[str, Any]]:
    """The records of mails, without the ledger's."""
    found = verify(site.config.audit_directory)
    assert not found.problems
    return list(records(site.config.audit_directory, events=("mail",)))


def picked(record: dict[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple(record[name] for name in names)


@pytest.fixture
async def alice(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, identities: Identities) -> Site:
    return make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
        identities=identities,
        policies={
            "bob.example.toml": 'levels = ["aes"]\n', "bob.example/pqc.toml": 'levels = ["otp", "pqc"]\nmax_size = { otp = 10 }\n',
            "bob.example/held.toml": 'levels = ["otp"]\nmax_size = { otp = 10 }\n',
            "default.toml": 'levels = ["plaintext"]\nreason = "public"\n',
        },
    )  # fmt: skip


@pytest.fixture
async def bob(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, identities: Identities) -> Site:
    return make_site(
        tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=sink.address,
        identities=identities,
    )  # fmt: skip


async def test_each_group_of_recipients_has_a_record_that_says_how_it_was_protected(alice: Site, sink: Sink) -> None:
    everybody = ["ben@bob.example", "bea@bob.example", "pqc@bob.example", "x@elsewhere.example", "own@alice.example"]
    async with app.running(alice.config) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain(), recipients=everybody)).code == 250
    found = {(each["level"], each["peer"], each["outcome"]): each for each in of(alice)}
    assert {what: len(each["recipients"]) for what, each in found.items()} == {
        ("aes", "bob", "delivered"): 2,
        ("pqc", "bob", "delivered"): 1,
        ("plaintext", "", "delivered"): 1,
        ("plaintext", "", "inside"): 1,
    }
    aes, pqc = found["aes", "bob", "delivered"], found["pqc", "bob", "delivered"]
    assert len({each["mail"] for each in found.values()}) == 1
    assert picked(aes, "quantum_bits", "listed", "kme_group") == (256, ["aes"], "alice-bob")
    assert aes["policy"] == f"{alice.directory}/policies/bob.example.toml:1"
    assert len(aes["key_IDs"]) == 1
    assert picked(pqc, "key_IDs", "listed", "quantum_bits") == ([], ["otp", "pqc"], 0)
    assert "ML-KEM-1024" in pqc["algorithms"]
    assert aes["octets"] == len(mails.plain())
    by_octets = {len(got.message) for got in sink.got}
    assert {each["octets_out"] for each in found.values()} == by_octets


async def test_a_mail_to_many_has_several_records_and_lines_of_the_ledger_also_after_a_kill(
    alice: Site, sink: Sink
) -> None:
    with alice.config_file.open("a") as file:
        file.write('\n[audit]\naddresses = "clear"\n')
    many = ["x@elsewhere.example", "y@elsewhere.example", "z@elsewhere.example"]
    few = "from relay.audit import entries; entries.LISTED_OCTETS = 50"
    async with relay_process(alice, before=few) as relay:
        assert (await submit(relay.addresses["outgoing"], mails.plain(), recipients=many)).code == 250
    found = list(records(alice.config.audit_directory, events=("mail", "plaintext")))
    assert sorted((each["event"], len(each["recipients"])) for each in found) == [
        ("mail", 1), ("mail", 2), ("plaintext", 1), ("plaintext", 2),
    ]  # fmt: skip
    sink.gate = asyncio.Event()
    sink.reached.clear()
    async with relay_process(alice, before=few) as relay:
        sending = asyncio.create_task(submit(relay.addresses["outgoing"], mails.plain(), recipients=many))
        await sink.reached.wait()
        relay.kill()
        await relay.process.wait()
        await asyncio.gather(sending, return_exceptions=True)
    async with relay_process(alice, before=few):
        pass
    assert [(each["outcome"], len(each["recipients"])) for each in of(alice)][2:] == [("unknown", 2), ("unknown", 1)]


@pytest.mark.promise("Addresses in the audit record are hashed")
async def test_a_record_holds_neither_content_nor_address(alice: Site) -> None:
    async with app.running(alice.config) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250
    [file] = alice.config.audit_directory.glob("*.jsonl")
    for secret in (b"figures", b"ann@", b"ben@", b"ben", b"bob.example>"):
        assert secret not in file.read_bytes()
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.promise("No address and nothing of a message stands in the record")
async def test_neither_our_words_nor_those_of_servers_bring_an_address_or_content_into_the_record(
    bob: Site, sink: Sink
) -> None:
    strict = 'levels = ["aes"]\nrequire = "aes"\nunprotected = '
    bob.write_policies({"alice.example.toml": f'{strict}"refuse"\n'})
    sink.on_rcpt["ben@bob.example"] = "451 4.7.1 <ben@bob.example>: Recipient address rejected"
    sink.on_data = ["554 5.7.1 spam: Subject: figures for the bank"]
    async with app.running(bob.config) as into:
        for sender, recipient in (
            ("ann@alice.example", "bea@bob.example"), ("x@else.example", "ben@bob.example"),
            ("x@else.example", "bea@bob.example"),
        ):  # fmt: skip
            message = mails.plain().replace(b"ann@alice.example", sender.encode())
            assert (await submit(into["incoming"], message, sender=sender, recipients=[recipient])).code >= 400
    policy, held, refused = of(bob)
    hashed = AddressHash(SiteSecret.load(bob.config.store.secret)).write("ann@alice.example")
    assert f"mail from {hashed} must arrive with aes" in policy["cause"]
    assert held["cause"] == f"next hop {sink.address}: RCPT: 451 4.7.1"
    assert refused["cause"] == f"next hop {sink.address}: content: 554 5.7.1"
    for path in bob.config.audit_directory.iterdir():
        assert b"figures" not in path.read_bytes()
        assert b"@" not in path.read_bytes()


@pytest.mark.promise("The name by which both sites find a sealed mail is hidden from everybody between them")
async def test_both_sites_call_a_sealed_mail_the_same_and_nobody_on_the_way_can(
    alice: Site, bob: Site, sink: Sink
) -> None:
    async with app.running(alice.config) as out, app.running(bob.config) as into:
        assert (await submit(out["outgoing"], mails.plain())).code == 250
        [got] = sink.got
        assert (await submit(into["incoming"], got.message, sender=got.sender, recipients=got.recipients)).code == 250
    [sealed], [opened] = of(alice), of(bob)
    assert picked(sealed, "message_id", "sealed", "key_IDs") == picked(opened, "message_id", "sealed", "key_IDs")
    assert len(sealed["sealed"]) == 16
    assert sealed["sealed"].encode() not in got.message
    assert f"id {sealed['mail']};".encode() in got.message
    assert picked(opened, "direction", "peer", "level", "outcome") == ("incoming", "alice", "aes", "delivered")
    assert opened["octets"] == len(got.message)


async def test_what_does_not_leave_has_a_record_that_says_why(alice: Site, sink: Sink) -> None:
    sink.on_data = ["451 4.2.0 busy", "554 5.7.1 no"]
    async with app.running(alice.config) as addresses:
        for _ in range(3):
            await submit(addresses["outgoing"], mails.plain())
        looped = b"Received: from x by y; Wed, 25 Nov 2026 10:00:00 +0000\r\n" * 60 + mails.plain()
        assert (await submit(addresses["outgoing"], looped)).code == 554
    said = [picked(each, "level", "outcome", "reason") for each in of(alice)]
    assert said == [
        ("aes", "held", "NextHopUnavailable"), ("aes", "refused", "NextHopRefused"), ("aes", "delivered", ""),
        ("none", "refused", "MailLoop"),
    ]  # fmt: skip
    assert of(alice)[0]["cause"].endswith(": content: 451 4.2.0")
    first, second, third, _ = [each["key_IDs"] for each in of(alice)]
    assert first == second, "a mail that was held keeps its key"
    assert second != third, "a mail that was refused has come to its end"


async def test_who_can_get_no_level_is_recorded_with_the_policy_that_refuses_them(alice: Site) -> None:
    async with app.running(alice.config) as addresses:
        reply = await submit(addresses["outgoing"], mails.plain(), recipients=["held@bob.example"])
    assert reply.code == 552
    [record] = of(alice)
    assert picked(record, "peer", "level", "outcome", "listed") == ("bob", "none", "refused", ["otp"])
    assert record["policy"] == f"{alice.directory}/policies/bob.example/held.toml:1"
    assert "max_size is 10" in record["cause"]


async def test_what_arrives_is_recorded_opened_or_not_and_put_aside_or_not(alice: Site, bob: Site, sink: Sink) -> None:
    async with app.running(alice.config) as out, app.running(bob.config) as into:
        assert (await submit(out["outgoing"], mails.plain())).code == 250
        [got] = sink.got
        how: dict[str, Any] = {"sender": got.sender, "recipients": got.recipients}
        assert (await submit(into["incoming"], mails.plain())).code == 250
        assert (await submit(into["incoming"], got.message[:-50] + b"\r\n", **how)).code == 250
        for _ in range(2):
            assert (await submit(into["incoming"], got.message, **how)).code == 250
    assert [picked(each, "peer", "level", "outcome") for each in of(bob)] == [
        ("", "plaintext", "delivered"), ("alice", "none", "quarantined"), ("alice", "aes", "delivered"),
        ("alice", "aes", "repeated"),
    ]  # fmt: skip


async def test_without_every_mail_there_are_the_ledger_and_the_sets_of_policies_alone(alice: Site) -> None:
    with alice.config_file.open("a") as file:
        file.write("\n[audit]\nevery_mail = false\n")
    async with app.running(alice.config) as addresses:
        for recipient in ("ben@bob.example", "x@elsewhere.example"):
            assert (await submit(addresses["outgoing"], mails.plain(), recipients=[recipient])).code == 250
    assert of(alice) == []
    assert {each["event"] for each in records(alice.config.audit_directory)} == {"policies", "plaintext"}


# --- records that cannot be written -------------------------------------------------------------------------------


@pytest.mark.parametrize("when_unwritable", ["deliver", "hold"])
async def test_sealed_mail_goes_on_or_is_held_while_no_record_can_be_written_and_none_is_lost(
    alice: Site, sink: Sink, log: LogCapture, when_unwritable: str
) -> None:
    with alice.config_file.open("a") as file:
        file.write(f'\n[audit]\nwhen_unwritable = "{when_unwritable}"\n')
    directory = alice.config.audit_directory
    directory.touch()
    async with app.running(alice.config) as addresses:
        await until(lambda: "audit_not_written" in events(log))  # by what is recorded of the policies
        first = (await submit(addresses["outgoing"], mails.plain())).code
        directory.unlink()
        await until(lambda: "audit_written_again" in events(log))
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250
    assert first == (250 if when_unwritable == "deliver" else 451)
    assert [each["outcome"] for each in of(alice)] == ["delivered" if first == 250 else "held", "delivered"]
    assert events(log).count("audit_not_written") == 1


async def test_an_odd_file_in_the_place_of_the_record_is_named(alice: Site, log: LogCapture) -> None:
    directory = alice.config.audit_directory
    directory.mkdir()
    os.mkfifo(directory / "000000000001-2026-11-25.jsonl")
    async with app.running(alice.config):
        await until(lambda: "audit_not_written" in events(log))
    [entry] = [each for each in log.entries if each["event"] == "audit_not_written"]
    assert entry["cause"] == "000000000001-2026-11-25.jsonl: not a regular file"


async def test_a_record_that_another_process_has_locked_is_said_and_holds_mail_in_clear(
    alice: Site, sink: Sink, log: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.audit.chain.LOCK_S", 0.2)
    monkeypatch.setattr("relay.status.measures.SITE_S", 0.05)
    monkeypatch.setattr("relay.status.ready.LOOK_S", 0.05)
    with alice.config_file.open("a") as file:
        file.write('\n[audit]\nwhen_unwritable = "hold"\n')
    async with app.running(alice.config) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250
        await until(lambda: alice.config.audit_directory.exists())
        with locked(alice.config.audit_directory):
            clear = await submit(addresses["outgoing"], mails.plain(), recipients=["x@elsewhere.example"])
            assert (clear.code, (await submit(addresses["outgoing"], mails.plain())).code) == (451, 451)
            await until(lambda: "relay_not_ready" in events(log))
        await until(lambda: "relay_is_ready" in events(log))
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250
    assert "somebody has held its lock" in str([each for each in log.entries if each["event"] == "relay_not_ready"])
    assert [each["outcome"] for each in of(alice)] == ["delivered", "held", "held", "delivered"]


async def test_a_record_that_cannot_be_written_though_a_trial_finds_nothing_is_seen_from_outside(
    alice: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a limit of a file's size."""
    monkeypatch.setattr("relay.status.measures.SITE_S", 0.05)
    with alice.config_file.open("a") as file:
        file.write('\n[status]\nlisten = "127.0.0.1:0"\n')

    def too_long(*_: object) -> None:
        raise OSError(errno.EFBIG, "File too large")

    async with app.running(alice.config) as addresses:
        with monkeypatch.context() as patch:
            patch.setattr("relay.audit.chain.Chain._write", too_long)
            clear = await submit(addresses["outgoing"], mails.plain(), recipients=["x@elsewhere.example"])
            assert clear.code == 451
            async with asyncio.timeout(20):  # what /metrics tells may be a moment old
                while "qumail_audit_writable 0.0" not in await metrics_of(addresses):
                    await asyncio.sleep(0.05)
            for _ in range(3):
                assert "qumail_audit_writable 0.0" in await metrics_of(addresses), "it stays so"
                await asyncio.sleep(0.1)
        await until_writable(addresses)


async def metrics_of(addresses: Mapping[str, TCPAddress]) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"http://{addresses['status']}/metrics") as response:
        return await response.text()


async def until_writable(addresses: Mapping[str, TCPAddress]) -> None:
    async with asyncio.timeout(20):
        while "qumail_audit_writable 1.0" not in await metrics_of(addresses):
            await asyncio.sleep(0.05)


def events(log: LogCapture) -> list[str]:
    return [each["event"] for each in log.entries]


async def until(true: Any) -> None:
    """The relay does this by itself, soon."""
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)


# --- a relay that is killed ---------------------------------------------------------------------------------------


NEVER_WRITTEN = "from relay.audit import writing; writing.FLUSH_S = 3600.0"
"""Run before a relay, this leaves its records in memory."""


async def test_a_relay_that_was_killed_while_mail_left_records_it_when_it_starts_again(alice: Site, sink: Sink) -> None:
    sink.gate = asyncio.Event()
    async with relay_process(alice) as relay:
        sending = asyncio.create_task(submit(relay.addresses["outgoing"], mails.plain()))
        await sink.reached.wait()
        relay.kill()
        await relay.process.wait()
        await asyncio.gather(sending, return_exceptions=True)
    assert of(alice) == []
    async with relay_process(alice):
        pass
    [record] = of(alice)
    assert picked(record, "level", "peer", "outcome", "reason") == ("aes", "bob", "unknown", "Killed")
    assert (len(record["recipients"]), len(record["key_IDs"])) == (1, 1)
    async with relay_process(alice):
        pass
    assert of(alice) == [record]


async def test_mail_that_had_left_has_one_record_each_after_a_kill_that_came_before_any_was_written(
    alice: Site, sink: Sink
) -> None:
    async with relay_process(alice, before=NEVER_WRITTEN) as relay:
        for number in range(3):
            recipients = [f"ben{number}@bob.example", "bea@bob.example"]
            assert (await submit(relay.addresses["outgoing"], mails.plain(), recipients=recipients)).code == 250
        await submit(relay.addresses["outgoing"], mails.plain(), recipients=["x@elsewhere.example"])  # writes all
        assert (await submit(relay.addresses["outgoing"], mails.plain(), recipients=["late@bob.example"])).code == 250
        relay.kill()
        await relay.process.wait()
    assert len(of(alice)) == 3
    async with relay_process(alice):
        pass
    found = of(alice)
    assert [(len(each["recipients"]), each["outcome"], each["level"]) for each in found] == [
        (2, "delivered", "aes"), (2, "delivered", "aes"), (2, "delivered", "aes"), (1, "delivered", "plaintext"),
        (1, "delivered", "aes"),
    ]  # fmt: skip
    assert len({each["mail"] for each in found}) == 5


@pytest.mark.promise("The protection of each mail is on record")
async def test_whenever_a_relay_is_killed_no_mail_that_left_lacks_a_record_and_the_chain_is_whole(
    alice: Site, sink: Sink
) -> None:
    """Several clients send while it is killed, again and again; nobody retries what they did not hear of."""
    for kill in range(4):
        async with relay_process(alice) as relay:
            enough = len(sink.got) + 20 + 7 * kill
            clients = [
                asyncio.create_task(send_until_broken(relay.addresses["outgoing"], f"{kill}.{n}")) for n in range(4)
            ]
            await sink.messages(enough)
            relay.kill()
            await relay.process.wait()
            await asyncio.gather(*clients)
    async with relay_process(alice):
        pass
    left = Counter(mime.message_id_hash(got.message) for got in sink.got)
    recorded = Counter(each["message_id"] for each in of(alice) if each["outcome"] in ("delivered", "unknown"))
    assert left.keys() <= recorded.keys()
    assert set(recorded.values()) == {1}
    assert sum(recorded.values()) >= 100


async def send_until_broken(address: TCPAddress, name: str) -> None:
    with suppress(OSError, EOFError):
        for number in itertools.count():
            message = mails.plain().replace(b"Message-ID: <", b"Message-ID: <%b.%d." % (name.encode(), number))
            await submit(address, message)


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_second_relay_with_the_same_directory_does_not_start_and_says_why(
    alice: Site, bob: Site, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr("relay.audit.sole.WAIT_S", 0.1)
    with bob.config_file.open("a") as file:
        file.write(f'\n[audit]\ndirectory = "{alice.config.audit_directory}"\n')
    alice.set_workers(workers)
    async with relay_process(alice):
        with pytest.raises(ConfigError, match="another relay has its audit record there"):
            async with app.running(bob.config):
                pass
    async with app.running(bob.config):
        pass
    assert not (alice.config.audit_directory / ".relay").exists()


async def test_several_workers_write_one_chain(alice: Site, sink: Sink) -> None:
    with alice.config_file.open("a") as file:
        file.write("\n[limits]\nworkers = 2\n")
    async with relay_process(alice) as relay:
        await asyncio.gather(*(submit(relay.addresses["outgoing"], message_no(number)) for number in range(40)))
    assert len({each["message_id"] for each in of(alice)}) == 40


async def test_what_a_killed_worker_had_delivered_is_recorded_so_though_another_one_gets_the_retry(
    alice: Site, sink: Sink
) -> None:
    with alice.config_file.open("a") as file:
        file.write("\n[limits]\nworkers = 3\n")
    told = set()
    async with relay_process(alice) as relay:
        for begin in range(0, 60, 20):
            messages = [message_no(number) for number in range(begin, begin + 20)]
            sending = (submit(relay.addresses["outgoing"], each) for each in messages)
            replies = await asyncio.gather(*sending, return_exceptions=True)
            told |= {
                mime.message_id_hash(message)
                for message, reply in zip(messages, replies, strict=True)
                if not isinstance(reply, BaseException) and reply.code == 250
            }
            os.kill(workers_of(relay.process.pid)[0], signal.SIGKILL)
            retries = (submit(relay.addresses["outgoing"], each) for each in messages)
            await asyncio.gather(*retries, return_exceptions=True)
    assert told
    found = of(alice)
    assert told <= {each["message_id"] for each in found if each["outcome"] == "delivered"}


async def test_a_relay_that_starts_after_a_kill_reads_of_the_record_what_may_be_about_its_mail_alone(
    alice: Site, sink: Sink
) -> None:
    async with relay_process(alice) as relay:
        for number in range(3):
            await submit(relay.addresses["outgoing"], message_no(number), recipients=["x@elsewhere.example"])
    [path] = alice.config.audit_directory.glob("*.jsonl")
    before = path.read_bytes()
    sink.gate = asyncio.Event()
    sink.reached.clear()
    async with relay_process(alice) as relay:
        sending = asyncio.create_task(submit(relay.addresses["outgoing"], mails.plain()))
        await sink.reached.wait()
        relay.kill()
        await relay.process.wait()
        await asyncio.gather(sending, return_exceptions=True)
    [announced] = [
        each
        for file in contents(alice.config.state_directory / "audit.pending", ANNOUNCED_SUFFIX)
        for each in file.records
    ]
    said = json.loads(announced)
    claim = json.dumps({"event": "mail", "mail": said["mail"], "recipients": said["recipients"]}).encode()
    path.write_bytes(claim.ljust(len(before) - 1) + b"\n")  # a reader takes it for recorded
    async with relay_process(alice):
        pass
    assert [each.get("outcome") for each in records(alice.config.audit_directory)][1:] == ["unknown"]


async def test_of_several_tries_before_a_kill_the_last_one_alone_has_delivered(alice: Site, sink: Sink) -> None:
    unwritten = "from relay.audit import writing; writing.FLUSH_S = 3600"
    async with relay_process(alice, before=unwritten) as relay:
        for answers in (["451 4.3.0 later"], ["451 4.3.0 later"], []):
            sink.on_data = answers
            await submit(relay.addresses["outgoing"], mails.plain())
        relay.kill()
        await relay.process.wait()
    async with relay_process(alice):
        pass
    outcomes = [each["outcome"] for each in of(alice)]
    assert outcomes == ["unknown", "unknown", "delivered"]


async def test_an_odd_file_beside_them_keeps_no_announcement_and_no_start_back(alice: Site, sink: Sink) -> None:
    async with relay_process(alice, before="from relay.audit import writing; writing.FLUSH_S = 3600") as relay:
        await submit(relay.addresses["outgoing"], mails.plain())
        relay.kill()
        await relay.process.wait()
    for directory, suffix in (("audit.pending", ANNOUNCED_SUFFIX), ("sent.recent", ".sent")):
        os.mkfifo(alice.config.state_directory / directory / f"0{suffix}")
    status, _, said = await run("check", "--config", alice.config_file)
    assert status == 1
    assert said.count(b"not a regular file: no relay reads it: move it away") == 2
    async with relay_process(alice):
        pass
    assert [each["outcome"] for each in of(alice)] == ["delivered"]


@pytest.mark.parametrize("odd", ["a file", "a link to nowhere"])
async def test_where_it_cannot_be_written_down_what_has_left_a_start_ends_with_a_word_of_what_to_do(
    alice: Site, odd: str
) -> None:
    path = alice.config.state_directory / "sent.recent"
    path.touch() if odd == "a file" else path.symlink_to("/nowhere/at/all/it/is")
    status, said, _ = await run("serve", "--config", alice.config_file)
    assert status == 1
    assert f"{path}: " in said
    assert "it has to be a directory of the relay's user" in said
    assert "Traceback" not in said


def message_no(number: int) -> bytes:
    return mails.plain().replace(b"Message-ID: <", b"Message-ID: <%d." % number)


async def test_a_backup_that_is_made_while_mail_flows_has_a_whole_record_that_goes_on(
    alice: Site, tmp_path: Path
) -> None:
    small = "from relay.audit import chain; chain.Chain.__init__.__defaults__ = (3000,)"
    async with relay_process(alice, before=small) as relay:
        sending = asyncio.create_task(send_until_broken(relay.addresses["outgoing"], "x"))
        await until(lambda: len(list(alice.config.audit_directory.glob("*"))) > 4)
        status, err, _ = await run("backup", "--config", alice.config_file, tmp_path / "copy")
        assert status == 0, err
        relay.kill()
        await relay.process.wait()
        await sending
    found = verify(tmp_path / "copy" / "audit")
    assert found.problems == ()
    assert found.number > 5
    copied = [each["mail"] for each in records(tmp_path / "copy" / "audit", events=("mail",))]
    assert [each["mail"] for each in of(alice)][: len(copied)] == copied
