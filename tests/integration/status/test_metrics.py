"""/metrics tells what was sent, to the number, whatever strangers do and whichever worker is killed.
Standard: the text format of Prometheus, read by prometheus_client's own parser.
"""

from __future__ import annotations

import asyncio
import base64
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from relay.config import TCPAddress
from relay.formats import cms
from relay.kme import DevelopmentKMEs
from relay.process import app
from relay.status import exposition, measures
from tests.testlib import mails
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site
from tests.testlib.submit import submit

SEALED_TYPE = (
    b"MIME-Version: 1.0\r\nContent-Transfer-Encoding: base64\r\n"
    b"Content-Type: application/pkcs7-mime; smime-type=authEnveloped-data\r\n\r\n"
    + base64.b64encode(cms.QUANTUM_KEY_NAMES[0])
)
"""What a message begins with that names a quantum key; what follows is base64 too, and cannot be read."""
STATUS = '[status]\nlisten = "127.0.0.1:0"\n'


async def asked(address: TCPAddress, path: str = "/metrics") -> str:
    async with aiohttp.ClientSession() as session, session.get(f"http://{address}{path}") as response:
        assert response.status == 200, await response.text()
        return await response.text()


@dataclass
class Numbers:
    """What /metrics said, by name and labels."""

    samples: dict[tuple[str, frozenset[tuple[str, str]]], float]

    @classmethod
    def of(cls, text: str) -> Numbers:
        families = list(text_string_to_metric_families(text))
        assert len({family.name for family in families}) == len(families), "a name stands there once"
        return cls({(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples})

    def of_name(self, name: str) -> dict[frozenset[tuple[str, str]], float]:
        return {labels: value for (each, labels), value in self.samples.items() if each == name}

    def sum(self, name: str, /, **labels: str) -> float:
        return sum(value for has, value in self.of_name(name).items() if has >= set(labels.items()))


async def numbers(address: TCPAddress) -> Numbers:
    return Numbers.of(await asked(address))


def with_status(site: Site, text: str = STATUS) -> Site:
    site.config_file.write_text(f"{site.config_file.read_text()}\n{text}")
    return site


@dataclass
class Two:
    """Two sites whose status can be asked."""

    alice: dict[str, TCPAddress]
    bob: dict[str, TCPAddress]


@pytest.fixture
async def two(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Two]:
    monkeypatch.setattr(exposition, "SHARE", math.inf)  # what is told is never a moment old
    first, second = kmes.urls
    bob = with_status(make_site(tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=second, incoming=sink.address))
    async with AsyncExitStack() as stack:
        of_bob = await stack.enter_async_context(app.running(bob.config))
        alice = make_site(
            tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=first, outgoing=of_bob["incoming"],
            policies={
                "default.toml": 'levels = ["plaintext"]\n',
                "bob.example.toml": 'levels = ["aes"]\n',
                "refused.example.toml": 'peer = "bob"\nlevels = ["pqc+aes", "pqc"]\notherwise = "refuse"\n',
            },
        )  # fmt: skip
        of_alice = await stack.enter_async_context(app.running(with_status(alice).config))
        yield Two(of_alice, of_bob)


async def test_what_was_sent_and_opened_is_counted_to_the_mail(two: Two, sink: Sink) -> None:
    for number in range(7):
        message = mails.plain().replace(b"<1@", b"<%d@" % number)
        assert (await submit(two.alice["outgoing"], message)).code == 250
    reply = await submit(
        two.alice["outgoing"], mails.plain(), recipients=["x@bob.example", "y@bob.example", "z@elsewhere.example"]
    )
    assert reply.code == 250
    alice, bob = await numbers(two.alice["status"]), await numbers(two.bob["status"])
    sealed = {"direction": "outgoing", "listener": "smtp", "peer": "bob", "level": "aes", "outcome": "delivered"}
    assert alice.sum("qumail_mails_total", **sealed) == 8
    assert alice.sum("qumail_recipients_total", **sealed) == 9
    assert alice.sum("qumail_mails_total", level="plaintext", outcome="delivered", peer="") == 1
    assert alice.sum("qumail_mails_total") == 9
    opened = sealed | {"direction": "incoming", "peer": "alice"}
    assert bob.sum("qumail_mails_total", **opened) == 8
    assert bob.sum("qumail_mails_total", level="plaintext", outcome="delivered") == 1
    assert alice.sum("qumail_step_seconds_count", step="deliver") == 9
    assert alice.sum("qumail_step_seconds_count", step="all") == 8
    assert bob.sum("qumail_step_seconds_count", step="open") == 9
    assert alice.sum("qumail_keys_total", fate="used", peer="bob") == 8
    assert alice.sum("qumail_key_bits_used_total", peer="bob", level="aes") == 8 * 256
    assert bob.sum("qumail_keys_received_total", outcome="fetched") == 8


def _of_mails(found: Numbers) -> set[object]:
    """All names and labels that depend on mails."""
    return {each for each in found.samples if not each[0].startswith(("qumail_key", "qumail_kme", "qumail_journal"))}


async def test_a_process_that_could_not_measure_itself_once_does_so_again(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the figures of before would look well for ever."""
    failures = iter([OSError("Too many open files")] * 2)

    def resident() -> int:
        for failure in failures:
            raise failure
        return 12_345

    monkeypatch.setattr(measures, "MEASURE_S", 0.01)
    monkeypatch.setattr(measures, "_resident", resident)
    monkeypatch.setattr(exposition, "SHARE", math.inf)
    site = make_site(tmp_path, "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=sink.address)
    async with app.running(with_status(site).config) as addresses, asyncio.timeout(30):
        while (await numbers(addresses["status"])).sum("qumail_memory_resident_bytes") != 12_345:
            await asyncio.sleep(0.02)


async def test_strangers_become_no_labels(two: Two, sink: Sink) -> None:
    """Whatever they write where: addresses, domains, names of keys, sites and levels."""
    before: list[set[object]] = []
    for number in range(30):
        if number == 10:
            before = [_of_mails(await numbers(each["status"])) for each in (two.alice, two.bob)]
        name = f"stranger{number}"
        recipients = [f"{name}@{name}.example", f"{name}@bob.example"]
        for address in (two.bob["incoming"], two.alice["outgoing"]):
            await submit(address, mails.plain(), sender=f"{name}@{name}.example", recipients=recipients)
        forged = b"From: %s@alice.example\r\n%sAAAA\r\n" % (name.encode(), SEALED_TYPE)
        await submit(two.bob["incoming"], forged, sender=f"{name}@alice.example", recipients=recipients)
        await submit(two.bob["incoming"], b"x" * 100, sender="", recipients=[f"{name}@[192.0.2.{number}]"])
    for address in (two.alice["status"], two.bob["status"]):
        assert "stranger" not in await asked(address)
    assert [_of_mails(await numbers(each["status"])) for each in (two.alice, two.bob)] == before
    bob = await numbers(two.bob["status"])
    assert bob.sum("qumail_recipients_total", outcome="quarantined", peer="alice", level="none") == 60


async def test_each_fate_of_a_mail_is_counted_once(two: Two, sink: Sink) -> None:
    outgoing, status = two.alice["outgoing"], two.alice["status"]
    sink.on_data = ["451 later"]
    assert (await submit(outgoing, mails.plain())).code == 451
    found = await numbers(status)
    held = {"direction": "outgoing", "peer": "bob", "level": "aes", "outcome": "held"}
    assert found.sum("qumail_mails_total", **held) == 1
    assert found.sum("qumail_failures_total", direction="outgoing", reason="NextHopUnavailable") == 1
    assert (await numbers(two.bob["status"])).sum("qumail_mails_total", outcome="held", level="aes", peer="alice") == 1
    assert (await submit(outgoing, mails.plain())).code == 250
    sealed = sink.got[-1]
    assert (await submit(outgoing, mails.plain(), recipients=["x@alice.example"])).code == 250
    found = await numbers(status)
    assert found.sum("qumail_mails_total", **(held | {"outcome": "delivered"})) >= 1
    assert found.sum("qumail_mails_total", outcome="inside", level="plaintext", peer="") == 1
    assert sealed.recipients == ("ben@bob.example",)
    went = found.sum("qumail_mails_total") - found.sum("qumail_mails_total", outcome="held")
    assert found.sum("qumail_step_seconds_count", step="all") == went, "a mail that was held at once is not a fast one"
