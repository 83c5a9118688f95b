"""What counts without a restart: peers, identity, settings, DKIM keys, certificates, while mail flows and none is lost.
Standard: at the boundary; real processes, files replaced as commands, editors and people replace them.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dkim
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from relay.config import load_config
from relay.errors import ConfigError
from relay.formats import mime
from relay.identity import with_documents
from relay.kme import DevelopmentKMEs
from relay.process import app, assembly, reloading
from tests.integration.entry.submission.conftest import ca as ca, write_certificate
from tests.integration.entry.submission.program import connected
from tests.system.drill import shortened
from tests.testlib import mails
from tests.testlib.identities import Identities
from tests.testlib.relay_command import run
from tests.testlib.sink import Sink
from tests.testlib.sites import RelayProcess, Site, make_site, relay_process
from tests.testlib.submit import submit

PQC = 'levels = ["pqc"]\n'
POLICIES = {"default.toml": 'levels = ["plaintext"]\n', "bob.example.toml": PQC}


def numbered(number: int) -> bytes:
    return mails.plain().replace(b"<1@alice.example>", b"<%d.flow@alice.example>" % number)


def events(relay: RelayProcess, name: str) -> list[dict[str, Any]]:
    found = (json.loads(line) for line in relay.log.splitlines() if line.startswith("{"))
    return [each for each in found if each["event"] == name]


async def until(relay: RelayProcess, name: str, number: int = 1, **facts: object) -> dict[str, Any]:
    """The `number`th event of this name that has these facts, once it is there."""
    async with asyncio.timeout(60):
        while True:
            found = [each for each in events(relay, name) if facts.items() <= each.items()]
            if len(found) >= number:
                return found[number - 1]
            assert relay.process.returncode is None, relay.log
            await asyncio.sleep(0.02)


def renamed_over(path: Path, content: bytes) -> None:
    beside = path.with_name(".beside")
    beside.touch(mode=0o600)
    beside.write_bytes(content)
    beside.replace(path)


def in_place(path: Path, content: bytes) -> None:
    """As some editors do: the file is empty for a moment."""
    path.write_bytes(b"")
    path.write_bytes(content)


HOW = pytest.mark.parametrize("write", [renamed_over, in_place])


@dataclass
class Flow:
    """Mail after mail, until it is told to end."""

    relay: RelayProcess
    replies: Counter[int] = field(default_factory=Counter)
    sent: int = 0
    ending: bool = False

    async def go_on(self) -> None:
        while not self.ending:
            reply = await submit(self.relay.addresses["outgoing"], numbered(self.sent))
            self.replies[reply.code] += 1
            self.sent += 1

    async def more(self, number: int = 3) -> None:
        """Returns once so many were begun and ended after now."""
        until = self.sent + number + 1
        async with asyncio.timeout(60):
            while self.sent < until:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def flowing(relay: RelayProcess, sink: Sink) -> AsyncIterator[Flow]:
    """Every mail that was begun meanwhile has been taken, and arrived once."""
    flow = Flow(relay)
    task = asyncio.create_task(flow.go_on())
    try:
        await flow.more()
        yield flow
    finally:
        flow.ending = True
        await task
    assert set(flow.replies) == {250}
    assert Counter(_numbers(sink)) == Counter(range(flow.sent))


def _numbers(sink: Sink) -> Iterator[int]:
    for got in sink.got:
        [line] = [line for line in got.message.split(b"\r\n") if b".flow@" in line]
        yield int(line.partition(b"<")[2].partition(b".")[0])


@dataclass
class Two:
    """Two sites that know each other by their documents alone."""

    alice: Site
    bob: Site
    sealing: RelayProcess
    opening: RelayProcess

    @property
    def document(self) -> Path:
        """Bob's, as it is pinned at Alice's."""
        return self.alice.directory / "peers" / "bob.json"


def without_table(site: Site, name: str) -> None:
    """The peer is known by its document alone."""
    above, _, below = site.config_file.read_text().partition(f"[peers.{name}]")
    _, bracket, rest = below.partition("\n[")
    site.config_file.write_text(above + bracket.strip() + rest)


@pytest.fixture
async def two(tmp_path: Path, kmes: DevelopmentKMEs, identities: Identities, sink: Sink) -> AsyncIterator[Two]:
    first, second = kmes.urls
    state = kmes.state_dir
    bob = make_site(tmp_path / "bob", "bob", state=state, kme_url=second, incoming=sink.address, identities=identities)
    without_table(bob, "alice")
    async with AsyncExitStack() as stack:
        opening = await stack.enter_async_context(relay_process(bob))
        alice = make_site(
            tmp_path / "alice", "alice", state=state, kme_url=first, outgoing=opening.addresses["incoming"],
            policies=POLICIES, identities=identities,
        )  # fmt: skip
        without_table(alice, "bob")
        sealing = await stack.enter_async_context(relay_process(alice))
        yield Two(alice, bob, sealing, opening)


async def command(*arguments: str | Path) -> bytes:
    status, said, out = await run(*arguments)
    assert status == 0, said
    return out


async def test_a_renewed_identity_and_its_document_count_at_both_sites_while_mail_flows(two: Two, sink: Sink) -> None:
    """In the end the old keys are gone, so that what still arrives was sealed for the new document."""
    async with flowing(two.sealing, sink) as flow:
        own = two.bob.directory / "identity"
        old = [*own.glob("kem.*"), *own.glob("rsa_encryption.*")]
        await command("identity", "new", "--renew", "--config", two.bob.config_file)
        await until(two.opening, "identity_reloaded")
        await flow.more()
        document = two.bob.directory / "new.json"
        await command("identity", "export", "--config", two.bob.config_file, "-o", document)
        await command("identity", "import", "--yes", "--config", two.alice.config_file, document)
        await until(two.sealing, "peers_reloaded", changed=["bob"], new=[], gone=[])
        await flow.more()
        for path in old:
            path.unlink()
        await until(two.opening, "identity_reloaded", 2)
        await flow.more()


@HOW
async def test_a_broken_document_leaves_the_one_before_in_force(
    two: Two, sink: Sink, write: Callable[[Path, bytes], None]
) -> None:
    whole = two.document.read_bytes()
    async with flowing(two.sealing, sink) as flow:
        write(two.document, whole[:-100])
        said = await until(two.sealing, "peers_not_reloaded")
        assert str(two.document) in said["problems"][0]
        await flow.more()
        write(two.document, whole)
        await flow.more()
        two.sealing.process.send_signal(signal.SIGHUP)
        await until(two.sealing, "kme_certificates_renewed")
        await flow.more()
    assert events(two.sealing, "peers_reloaded") == []


@pytest.mark.parametrize("policy", ["its own file", "the file for everybody"])
async def test_for_a_peer_whose_document_is_gone_mail_is_held_and_none_leaves_in_clear(
    two: Two, sink: Sink, policy: str
) -> None:
    outgoing, whole = two.sealing.addresses["outgoing"], two.document.read_bytes()
    assert (await submit(outgoing, numbered(0))).code == 250
    if policy == "the file for everybody":
        (two.alice.directory / "policies" / "bob.example.toml").unlink()
        await until(two.sealing, "policy_file_gone")
    broken = two.document.with_name("carol.json")
    broken.touch(mode=0o600)
    two.document.unlink()
    await until(two.sealing, "peers_reloaded", gone=["bob"])
    assert (await submit(outgoing, numbered(1))).code in (450, 451)
    broken.unlink()
    renamed_over(two.document, whole)
    await until(two.sealing, "peers_reloaded", new=["bob"])
    if policy == "its own file":
        assert (await submit(outgoing, numbered(1))).code == 250
    assert {got.message.count(b"X-QuMail-Protection: pqc; peer=alice") for got in sink.got} == {1}


async def in_vain(site: Site, *, stands: bool) -> None:
    """Once the alarm about policies that cannot be fulfilled stands, or no longer does."""
    async with asyncio.timeout(60):
        while True:
            alarms = (
                json.loads(site.config.alarms_file.read_text())["alarms"] if site.config.alarms_file.exists() else []
            )
            if any(each["alarm"] == "policy_in_vain" for each in alarms) == stands:
                return
            await asyncio.sleep(0.02)


async def test_that_a_peers_document_is_gone_is_an_alarm_while_the_relay_serves_and_after_a_restart(
    alice: Site, wire: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reloading, "GONE_QUIET_S", 0.5)
    without_table(alice, "bob")
    alice.write_policies({"bob.example.toml": PQC})
    document = alice.directory / "peers" / "bob.json"
    whole = document.read_bytes()
    with shortened():
        async with app.running(alice.config):
            document.unlink()
            await in_vain(alice, stands=True)
        alice.config.alarms_file.unlink()
        async with app.running(alice.config):
            await in_vain(alice, stands=True)
            renamed_over(document, whole)
            await in_vain(alice, stands=False)


async def test_a_mail_that_is_handed_on_while_its_peer_is_forgotten_comes_to_its_end(two: Two, sink: Sink) -> None:
    sink.gate = asyncio.Event()
    mail = asyncio.create_task(submit(two.sealing.addresses["outgoing"], numbered(0)))
    await sink.reached.wait()
    (two.bob.directory / "peers" / "alice.json").unlink()
    await until(two.opening, "peers_reloaded", gone=["alice"])
    sink.gate.set()
    assert (await mail).code == 250
    assert (await submit(two.sealing.addresses["outgoing"], numbered(1))).code == 250
    assert (await until(two.opening, "put_in_quarantine"))["reason"] == "unknown-signer"
    assert len(sink.got) == 1
    assert not [line for line in two.opening.log.splitlines() if '"level": "error"' in line]


async def test_what_was_sealed_for_a_peer_that_is_gone_meanwhile_leaves_no_more(alice: Site, wire: Sink) -> None:
    without_table(alice, "bob")
    alice.write_policies({"bob.example.toml": PQC})
    wire.on_data = ["451 4.2.0 later"]
    document = alice.directory / "peers" / "bob.json"
    whole = document.read_bytes()
    async with relay_process(alice) as relay:
        assert (await submit(relay.addresses["outgoing"], numbered(0))).code == 451
        document.unlink()
        await until(relay, "peers_reloaded", gone=["bob"])
        assert (await submit(relay.addresses["outgoing"], numbered(0))).code == 451
        assert wire.got == []
        renamed_over(document, whole)
        await until(relay, "peers_reloaded", new=["bob"])
        assert (await submit(relay.addresses["outgoing"], numbered(0))).code == 250
    assert len(wire.got) == 1


async def test_a_table_of_an_imported_peer_says_only_what_is_otherwise_and_counts_for_none_without_its_document(
    alice: Site, wire: Sink
) -> None:
    without_table(alice, "bob")
    with alice.config_file.open("a") as file:
        file.write('[peers.bob]\nforwards = ["*"]\n')
    alice.write_policies({"bob.example.toml": PQC})
    document = alice.directory / "peers" / "bob.json"
    whole = document.read_bytes()
    peer = with_documents(alice.config)[0].peers["bob"]
    assert (peer.domains, peer.sae_id, peer.kme_groups) == (("bob.example",), "1", ("alice-bob",))
    assert peer.forwards == ("*",)
    async with relay_process(alice) as relay:
        assert (await submit(relay.addresses["outgoing"], numbered(0))).code == 250
        document.unlink()
        await until(relay, "peers_reloaded", gone=["bob"])
        assert (await submit(relay.addresses["outgoing"], numbered(1))).code == 451
    with pytest.raises(ConfigError, match=r"peers\.bob: domains and sae_id missing, and no document of that name"):
        load_config(alice.config_file)
    document.write_bytes(whole)
    edit = alice.config_file.read_text().replace('forwards = ["*"]', 'sae_id = "5"')
    alice.config_file.write_text(edit)
    with pytest.raises(ConfigError, match=r"the document says SAE '1', \[peers\.bob\] says '5'"):
        with_documents(alice.config)


async def test_a_document_that_is_replaced_by_deleting_it_first_holds_no_mail(two: Two, sink: Sink) -> None:
    whole = two.document.read_bytes()
    async with flowing(two.sealing, sink) as flow:
        two.document.unlink()
        renamed_over(two.document, whole)
        await flow.more(10)
    assert events(two.sealing, "peers_reloaded") == []


CAROL = '\n[peers.carol]\ndomains = ["carol.example"]\nsae_id = "sae-carol"\nkme_groups = []\n'


@asynccontextmanager
async def alone(site: Site, workers: int) -> AsyncIterator[RelayProcess]:
    if workers > 1:
        site.config_file.write_text(f"{site.config_file.read_text()}\n[limits]\nworkers = {workers}\n")
    async with relay_process(site) as relay:
        yield relay


@pytest.fixture
def alice(tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink, identities: Identities) -> Site:
    """She hands what she seals to `wire`."""
    return make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address,
        policies=POLICIES | {"bob.example.toml": 'levels = ["aes"]\n'}, identities=identities,
    )  # fmt: skip


@pytest.mark.parametrize("workers", [1, 2])
async def test_sighup_takes_the_peers_of_relay_toml_and_says_what_else_needs_a_restart(
    alice: Site, wire: Sink, workers: int
) -> None:
    async with alone(alice, workers) as relay:
        text = alice.config_file.read_text()
        changed = text.replace("retry_attempts = 1", "retry_attempts = 2").replace(
            'domains = ["bob.example"]', 'domains = ["bob.example"]\nkey_max_messages = 2'
        )
        alice.config_file.write_text(changed + CAROL)
        relay.process.send_signal(signal.SIGHUP)
        taken = await until(relay, "relay_toml_reloaded")
        assert taken["changed"] == ["peers"]
        waiting = await until(relay, "settings_need_restart")
        assert waiting["changed"] == ["kmes.kme.retry_attempts"]
        for number in range(workers):
            facts = {"worker": number + 1} if workers > 1 else {}
            assert (await until(relay, "peers_reloaded", **facts))["new"] == ["carol"]
            await until(relay, "policies_loaded", **facts)
        assert len(events(relay, "settings_need_restart")) == 1
        for number in range(10):  # carol.example had been anybody's domain, and the file for everybody says plaintext
            reply = await submit(relay.addresses["outgoing"], numbered(number), recipients=["carl@carol.example"])
            assert reply.code == 451
        assert (await submit(relay.addresses["outgoing"], numbered(10))).code == 250
    assert len(wire.got) == 1


async def test_sighup_takes_whose_mail_a_peer_takes(alice: Site, wire: Sink) -> None:
    async with alone(alice, 1) as relay:
        first, second = ((relay.addresses["outgoing"], numbered(number)) for number in (1, 2))
        assert (await submit(*first, sender="crm@partner.example")).code == 550
        text = alice.config_file.read_text()
        taken = 'domains = ["bob.example"]\ntakes_from = ["partner.example"]'
        alice.config_file.write_text(text.replace('domains = ["bob.example"]', taken))
        relay.process.send_signal(signal.SIGHUP)
        await until(relay, "peers_reloaded")
        assert (await submit(*second, sender="crm@partner.example")).code == 250
    assert len(wire.got) == 1


@pytest.mark.parametrize("workers", [1, 2])
async def test_nothing_leaves_in_clear_for_a_new_peer_though_its_policy_file_is_broken(
    alice: Site, wire: Sink, workers: int
) -> None:
    async with alone(alice, workers) as relay:
        alice.write_policies({"carol.example.toml": "levels = [aes]\n"})
        await until(relay, "policies_not_reloaded")
        with alice.config_file.open("a") as file:
            file.write(CAROL)
        relay.process.send_signal(signal.SIGHUP)
        for number in range(workers):
            await until(relay, "peers_reloaded", **({"worker": number + 1} if workers > 1 else {}))
        for number in range(10):
            reply = await submit(relay.addresses["outgoing"], numbered(number), recipients=["carl@carol.example"])
            assert reply.code == 451
        assert (await submit(relay.addresses["outgoing"], numbered(10), recipients=["a@elsewhere.example"])).code == 250
    assert [got.recipients for got in wire.got] == [("a@elsewhere.example",)]


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_relay_toml_that_is_wrong_leaves_all_as_it_was(alice: Site, wire: Sink, workers: int) -> None:
    async with alone(alice, workers) as relay:
        with alice.config_file.open("a") as file:
            file.write('\n[peers.carol]\ndomains = ["bob.example"]\nsae_id = "sae-carol"\n')
        relay.process.send_signal(signal.SIGHUP)
        assert "bob.example" in (await until(relay, "relay_toml_not_reloaded"))["problems"][0]
        assert (await submit(relay.addresses["outgoing"], numbered(0))).code == 250


async def test_a_worker_that_is_started_later_takes_what_was_read_again_and_keeps_what_was_not(
    alice: Site, wire: Sink
) -> None:
    async with alone(alice, 2) as relay:
        text = alice.config_file.read_text()
        alice.config_file.write_text(text.replace('database = "relay.db"', 'database = "other.db"') + CAROL)
        relay.process.send_signal(signal.SIGHUP)
        await until(relay, "settings_need_restart", changed=["store.database"])
        alice.config_file.write_text(text)  # not read until somebody says so
        relay.process.send_signal(signal.SIGUSR1)
        await until(relay, "workers_started_anew")
        for number in range(4):
            reply = await submit(relay.addresses["outgoing"], numbered(number), recipients=["carl@carol.example"])
            assert reply.code == 451
        assert (await submit(relay.addresses["outgoing"], numbered(10))).code == 250
    assert len(wire.got) == 1
    assert not (alice.directory / "other.db").exists()


async def test_a_dkim_key_counts_once_its_file_has_changed_and_another_one_from_its_table_on(
    alice: Site, wire: Sink
) -> None:
    key, new = alice.directory / "one.pem", alice.directory / "two.pem"
    make = ("identity", "dkim", "new", "--config", alice.config_file, "alice.example")
    await command(*make, "one", "-o", key)
    await command(*make, "two", "-o", new)
    table = '\n[[dkim.keys]]\ndomain = "alice.example"\nselector = "{}"\nkey = "{}"\n'
    with alice.config_file.open("a") as file:
        file.write("\n[dkim]\nverify = false\n" + table.format("one", key))
    async with relay_process(alice) as relay:
        first, second = key.read_bytes(), new.read_bytes()
        in_place(key, b"nonsense")
        assert str(key) in (await until(relay, "dkim_keys_not_reloaded"))["problems"][0]
        await submit(relay.addresses["outgoing"], numbered(0))
        renamed_over(key, second)
        await until(relay, "dkim_keys_reloaded")
        await submit(relay.addresses["outgoing"], numbered(1))
        with alice.config_file.open("a") as file:
            file.write(table.format("two", new))
        relay.process.send_signal(signal.SIGHUP)
        assert len((await until(relay, "dkim_keys_reloaded", 2))["keys"]) == 2
        await submit(relay.addresses["outgoing"], numbered(2))
    by_first, by_second, by_both = (got.message for got in wire.got)
    assert signed_by(by_first, first)
    assert not signed_by(by_first, second)
    assert signed_by(by_second, second)
    assert by_both.count(b"DKIM-Signature") == 2


def signed_by(message: bytes, key: bytes) -> bool:
    """Whether a library that shares no code with us finds the signature right under this private key."""
    public = load_pem_private_key(key, None).public_key()
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    record = b"v=DKIM1; k=rsa; p=" + base64.b64encode(der)
    return bool(dkim.verify(message, dnsfunc=lambda name, timeout=5: record))


@HOW
async def test_a_certificate_counts_once_its_files_have_changed_and_fit_each_other(
    alice: Site, ca: trustme.CA, write: Callable[[Path, bytes], None]
) -> None:
    write_certificate(alice.directory, ca)
    (alice.directory / "users").touch(mode=0o600)
    with alice.config_file.open("a") as file:
        file.write(
            '\n[submission]\nlisten_tls = "127.0.0.1:0"\ncertificate = "relay.pem"\nkey = "relay.key"\nusers = "users"\n'
        )
    trust = ssl.create_default_context()
    ca.configure_trust(trust)
    async with relay_process(alice) as relay:
        address = relay.addresses["submission_tls"]
        async with connected(address, trust, tls=True) as before:
            (alice.directory / "new").mkdir()
            write_certificate(alice.directory / "new", ca)
            write(alice.directory / "relay.pem", (alice.directory / "new" / "relay.pem").read_bytes())
            await until(relay, "certificate_not_reloaded")  # its key is not there yet
            async with connected(address, trust, tls=True) as still:
                assert still.certificate == before.certificate
            write(alice.directory / "relay.key", (alice.directory / "new" / "relay.key").read_bytes())
            await until(relay, "certificate_reloaded")
            async with connected(address, trust, tls=True) as after:
                assert after.certificate != before.certificate
            assert await before.ask("NOOP") == "250 2.0.0 Ok"


async def test_a_domain_that_a_peer_had_stays_out_of_policies_for_everybody(alice: Site, wire: Sink) -> None:
    """One is given up, written in capitals, and another one is written in another way."""
    text = alice.config_file.read_text()
    table = 'domains = ["bob.example"]\nsae_id = "1"\nkme_groups = ["alice-bob"]\n'
    assert table in text
    alice.config_file.write_text(
        text.replace(table, table.replace("]\nsae", ', "Old.Example", "bücher.example"]\nsae', 1))
    )
    shutil.rmtree(alice.directory / "peers")
    alice.write_policies({"old.example.toml": PQC})
    async with relay_process(alice) as relay:
        now = table.replace("]\nsae", ', "xn--bcher-kva.example"]\nsae', 1)
        alice.config_file.write_text(text.replace(table, now))
        relay.process.send_signal(signal.SIGHUP)
        await until(relay, "policies_loaded")
        (alice.directory / "policies" / "old.example.toml").unlink()
        await until(relay, "policy_file_gone")
        outgoing = relay.addresses["outgoing"]
        for recipient in ("a@old.example", "a@xn--bcher-kva.example", "a@Bücher.example"):
            reply = await submit(outgoing, numbered(0), recipients=[recipient], options=["SMTPUTF8"])
            assert reply.code in (450, 451, 550), (recipient, reply)
        assert (await submit(outgoing, numbered(0), recipients=["a@elsewhere.example"])).code == 250
    assert [got.recipients for got in wire.got] == [("a@elsewhere.example",)]


async def test_a_peer_whose_document_and_policy_file_are_lost_stays_one_over_restarts(alice: Site, wire: Sink) -> None:
    """As where a configuration tool or half a restore takes both away: the file for everybody lets mail out in clear."""
    without_table(alice, "bob")
    async with relay_process(alice) as relay:
        assert (await submit(relay.addresses["outgoing"], numbered(0))).code == 250
    (alice.directory / "peers" / "bob.json").unlink()
    (alice.directory / "policies" / "bob.example.toml").unlink()
    for _ in range(2):
        async with relay_process(alice) as relay:
            assert (await submit(relay.addresses["outgoing"], numbered(1))).code == 451
    alice.write_policies({"bob.example.toml": 'levels = ["plaintext"]\n'})
    async with relay_process(alice) as relay:
        assert (await submit(relay.addresses["outgoing"], numbered(2))).code == 250
    assert [mime.is_sealed(got.message) for got in wire.got] == [True, False]


@pytest.mark.parametrize("anew", ["killed", "one after the other"])
async def test_a_worker_that_starts_anew_remembers_the_peers_of_before(alice: Site, wire: Sink, anew: str) -> None:
    without_table(alice, "bob")
    (alice.directory / "policies" / "bob.example.toml").unlink()  # the file for everybody lets mail out in clear
    async with alone(alice, 2) as relay:
        assert (await submit(relay.addresses["outgoing"], numbered(0), recipients=["a@elsewhere.example"])).code == 250
        (alice.directory / "peers" / "bob.json").unlink()
        for worker in (1, 2):
            await until(relay, "peers_reloaded", gone=["bob"], worker=worker)
        async with assembly.parts(alice.config, prefetch=False):  # as a command beside it does
            pass
        if anew == "killed":
            os.kill(int((await until(relay, "worker_started", worker=2))["process"]), signal.SIGKILL)
        else:
            relay.process.send_signal(signal.SIGUSR1)
        await until(relay, "relay_serves", 3 if anew == "killed" else 4)
        for number in range(12):
            assert (await submit(relay.addresses["outgoing"], numbered(number))).code in (450, 451, 550)
    assert [got.recipients for got in wire.got] == [("a@elsewhere.example",)]
