"""By whichever listener a mail comes, /metrics tells to the recipient what became of it; and what is told of keys and ends.
Standard: what was answered at the listener is what is counted, and what certificates say of themselves is what is told.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from cryptography import x509

from relay.config import TCPAddress
from relay.kme import DevelopmentKMEs, LinkSettings
from relay.process import app
from relay.status import exposition, measures
from tests.integration.entry.milter.mta import MTA
from tests.testlib import mails
from tests.testlib.identities import Identities
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site
from tests.testlib.smime import certified, make_smime_site
from tests.testlib.status_numbers import StatusNumbers, numbers, with_status
from tests.testlib.submit import submit, submit_lmtp

POLICIES = {
    "default.toml": 'levels = ["plaintext"]\n',
    "alice.example.toml": 'levels = ["plaintext"]\n',
    "bob.example.toml": 'levels = ["aes"]\n',
    "held.example.toml": 'peer = "bob"\nlevels = ["pqc+aes", "pqc"]\n',
}
SETTINGS = 'lmtp = "127.0.0.1:0"\nmilter = "127.0.0.1:0"\n'


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "SHARE", math.inf)
    monkeypatch.setattr(measures, "MEASURE_S", 0.05)
    monkeypatch.setattr(measures, "SITE_S", 0.05)


@pytest.fixture(name="site")
def _site(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> Site:
    return with_status(
        make_site(
            tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
            policies=POLICIES, settings=SETTINGS, kme_settings="cache_high = 4\n",
        )
    )  # fmt: skip


async def until(status: TCPAddress, is_right: Callable[[StatusNumbers], bool]) -> StatusNumbers:
    async with asyncio.timeout(30):
        while not is_right(found := await numbers(status)):
            await asyncio.sleep(0.05)
    return found


async def test_by_lmtp_each_recipient_has_a_fate_of_its_own(site: Site, sink: Sink) -> None:
    recipients = ["ben@bob.example", "ann@alice.example", "x@elsewhere.example", "y@elsewhere.example"]
    sink.on_rcpt = {"y@elsewhere.example": "550 5.1.1 unknown"}
    async with app.running(site.config) as addresses:
        replies = await submit_lmtp(
            addresses["outgoing_lmtp"], mails.plain(), recipients=[*recipients, "z@held.example"]
        )
        assert [reply.code for reply in replies] == [250, 250, 250, 554, 451]
        found = await numbers(addresses["status"])
        name, listener = "qumail_recipients_total", {"direction": "outgoing", "listener": "lmtp"}
        assert found.sum(name, **listener, peer="bob", level="aes", outcome="delivered") == 1
        assert found.sum(name, **listener, level="plaintext", outcome="inside") == 1
        assert found.sum(name, **listener, level="plaintext", outcome="delivered") == 1
        assert found.sum(name, **listener, outcome="refused") == 1
        assert found.sum(name, **listener, level="none", outcome="held") == 1, "at RCPT already"
        assert found.sum(name) == 5


async def test_by_milter_what_stays_with_the_mail_server_is_counted_as_delivered(site: Site) -> None:
    def hand_over(address: TCPAddress) -> list[str]:
        mta = MTA(address)
        mta.negotiate()
        fields = [("From", " ann@alice.example"), ("Message-ID", " <m1@alice.example>"), ("Subject", " x")]
        answer = mta.mail(fields, "text\r\n", recipients=["<ben@bob.example>", "<x@elsewhere.example>"])
        refused = mta.mail(fields, "text\r\n", recipients=["<z@held.example>"])
        mta.close()
        return [answer.text, refused.text[:3]]

    async with app.running(site.config) as addresses:
        assert await asyncio.to_thread(hand_over, addresses["outgoing_milter"]) == ["", "451"]
        found = await numbers(addresses["status"])
        name, listener = "qumail_recipients_total", {"direction": "outgoing", "listener": "milter"}
        assert found.sum(name, **listener, peer="bob", level="aes", outcome="delivered") == 1
        assert found.sum(name, **listener, peer="", level="plaintext", outcome="delivered") == 1
        assert found.sum(name, **listener, level="none", outcome="held") == 1, "at RCPT already"
        assert found.sum(name) == 3


@pytest.fixture(name="dry")
async def _dry(tmp_path: Path) -> AsyncIterator[DevelopmentKMEs]:
    """KMEs whose link makes no keys any more."""
    link = LinkSettings(key_rate=0, stored_key_limit=100)
    async with DevelopmentKMEs(state_dir=tmp_path / "dry", host="127.0.0.1", ports=(0, 0), link=link) as servers:
        yield servers


async def test_keys_forecast_and_breaker_are_told(tmp_path: Path, dry: DevelopmentKMEs, sink: Sink) -> None:
    site = with_status(
        make_site(
            tmp_path / "alice", "alice", state=dry.state_dir, kme_url=dry.urls[0], outgoing=sink.address,
            policies=POLICIES, kme_settings="cache_high = 4\n",
        )
    )  # fmt: skip
    async with app.running(site.config) as addresses:
        status, place = addresses["status"], {"kme": "kme", "peer": "bob"}
        found = await until(status, lambda each: 0 < each.sum("qumail_kme_stored_keys", **place) <= 100)
        assert found.sum("qumail_kme_key_bits", **place) == 256
        # Nobody uses them.
        found = await until(status, lambda each: each.sum("qumail_key_empty_seconds", **place) == math.inf)
        assert found.sum("qumail_kme_breaker_state", kme="kme") == 0
        for number in range(5):
            assert (await submit(addresses["outgoing"], mails.plain().replace(b"<1@", b"<%d@" % number))).code == 250
        found = await until(status, lambda each: each.sum("qumail_key_alarm", **place) == 1)
        assert 0 < found.sum("qumail_key_empty_seconds", **place) < math.inf
        assert found.sum("qumail_key_use_bits_per_second", **place) > 0
        for call in ("status", "enc_keys"):
            dry.km1.misbehave(call, "http", times=None, code=401)
        for number in range(5, 30):
            await submit(addresses["outgoing"], mails.plain().replace(b"<1@", b"<%d@" % number))
        found = await until(status, lambda each: each.sum("qumail_kme_breaker_state", kme="kme") == 2)
        assert found.sum("qumail_keys_missed_total", peer="bob") > 0
        assert found.sum("qumail_kme_requests_total", kme="kme", outcome="misconfigured") > 0


async def test_when_each_certificate_ends_is_told(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, identities: Identities
) -> None:
    alice = with_status(
        make_site(
            tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
            identities=identities,
        )
    )  # fmt: skip

    def end(path: Path) -> float:
        return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp()

    name = "qumail_certificate_end_timestamp_seconds"
    async with app.running(alice.config) as addresses:
        found = await until(addresses["status"], lambda each: each.sum(name, of="peer", name="bob") > 0)
        assert found.sum(name, of="kme_client", name="kme") == end(kmes.state_dir / "sae-2.pem")
        assert found.sum(name, of="kme_ca", name="kme") == end(kmes.state_dir / "ca.pem")
        own = list((alice.directory / "identity").glob("*.pem"))
        ours = {value for labels, value in found.of_name(name).items() if ("of", "site") in labels}
        assert ours
        assert ours <= {end(each) for each in own if b"BEGIN CERTIFICATE" in each.read_bytes()}


async def test_when_what_smime_needs_ends_is_told(tmp_path: Path, sink: Sink) -> None:
    own = certified("securemail@alice.example", days=(-300, 9))
    site = with_status(
        make_smime_site(
            tmp_path / "alice", outgoing=sink.address, policies={"default.toml": 'levels = ["smime"]\n'}, own=own,
            certificates={"ben@bob.example": certified("ben@bob.example", number=1, days=(-300, 8))},
        )
    )  # fmt: skip
    name = "qumail_certificate_end_timestamp_seconds"
    async with app.running(site.config) as addresses:
        await until(addresses["status"], lambda each: each.sum(name, of="smime", name="site") > 0)
        assert (await submit(addresses["outgoing"], mails.plain(), recipients=["ben@bob.example"])).code == 250
        found = await until(addresses["status"], lambda each: each.sum(name, of="smime", name="bob.example") > 0)
        assert 7 < (found.sum(name, of="smime", name="bob.example") - time.time()) / 86_400 < 8
