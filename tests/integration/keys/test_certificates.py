"""Certificates for KMEs: renewed files count without a restart, and those that end soon are told of every day.
Standard: ETSI GS QKD 014 V1.1.1, 5.1; RFC 5280; real handshakes on localhost.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from structlog.testing import LogCapture

from relay.errors import ConfigError, KeyUnavailable
from relay.keys.tls import ClientTLS, TLSRules
from relay.kme import DevelopmentKMEs
from relay.process import app, upkeep
from tests.integration.keys.test_build import _write
from tests.system.drill import shortened
from tests.testlib import mails
from tests.testlib.alarms import until_written
from tests.testlib.fake_kme import Certificates, FakeKME, FakeTime
from tests.testlib.relay_command import run
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site
from tests.testlib.status_numbers import numbers, with_status
from tests.testlib.status_page import page
from tests.testlib.submit import submit

NOW = datetime.now(UTC)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Certificates]:
    """Certificates of this test alone, which it may change."""
    yield Certificates(tmp_path)


def _issue(files: Path, authority: trustme.CA, parts: str = "certificate key", days: float = 90) -> None:
    """Puts a new certificate of ours in the place of the one that is there, or parts of it."""
    new = authority.issue_cert(common_name="sae-alice", not_after=NOW + timedelta(days=days))
    for part, name, blob in (
        ("certificate", "sae.pem", new.cert_chain_pems[0]),
        ("key", "sae.key", new.private_key_pem),
    ):
        if part in parts:
            (files / f"{name}.new").write_bytes(blob.bytes())
            (files / f"{name}.new").replace(files / name)


async def test_renewed_files_count_as_soon_as_they_belong_together(
    own: Certificates, time: FakeTime, caplog: pytest.LogCaptureFixture
) -> None:
    """The KME goes over to another authority; ours is renewed part by part, and the breaker does not delay it."""
    new = trustme.CA()
    async with (
        FakeKME(own) as kme,
        kme.client(timing=time.timing, retry_attempts=0, timeout=3) as client,
    ):
        await client.request_enc_keys("bob")
        await kme.stop()
        kme.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        new.issue_cert("localhost").configure_cert(kme.tls)
        new.configure_trust(kme.tls)
        kme.tls.verify_mode = ssl.CERT_REQUIRED
        await kme.start()
        with pytest.raises(KeyUnavailable):
            await client.request_enc_keys("bob")
        leaf = new.issue_cert(common_name="sae-alice")
        for path, blob in (
            ("ca.pem", new.cert_pem),
            ("sae.pem", leaf.cert_chain_pems[0]),
            ("sae.key", leaf.private_key_pem),
        ):
            time.now += 2
            with pytest.raises(KeyUnavailable):
                await client.request_enc_keys("bob")
            blob.write_to_path(own.directory / path)
        time.now += 2
        assert len(await client.request_enc_keys("bob")) == 1
    told = [record.levelno for record in caplog.records if "not_renewed" in record.getMessage()]
    assert told == [logging.ERROR]


@pytest.mark.parametrize("wrong", ["certificate", "ca"])
async def test_renewed_files_that_the_kme_does_not_take_leave_those_before_in_force_and_are_told(
    own: Certificates, time: FakeTime, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    caplog.set_level(logging.INFO)
    async with (
        FakeKME(own) as kme,
        kme.client(timing=time.timing, retry_attempts=0, timeout=3) as client,
    ):
        await client.request_enc_keys("bob")
        before = {name: (own.directory / name).read_bytes() for name in ("ca.pem", "sae.pem", "sae.key")}
        if wrong == "certificate":
            _issue(own.directory, trustme.CA())
        else:
            trustme.CA().cert_pem.write_to_path(own.directory / "ca.pem")
        time.now += 2
        assert len(await client.request_enc_keys("bob")) == 1
        assert "renewed files" in client.troubles["certificates"]
        assert "kme_certificates_refused" in caplog.text
        assert "kme_certificates_renewed" not in caplog.text
        for name, content in before.items():
            (own.directory / name).write_bytes(content)
        _issue(own.directory, own.authority)
        time.now += 2
        await client.request_enc_keys("bob")
        assert client.troubles == {}
        assert "kme_certificates_renewed" in caplog.text


async def test_renewed_files_are_taken_once_the_kme_takes_them(own: Certificates, time: FakeTime) -> None:
    """Its operator may be later than ours."""
    new = trustme.CA()
    async with (
        FakeKME(own) as kme,
        kme.client(timing=time.timing, retry_attempts=0, timeout=3) as client,
    ):
        await client.request_enc_keys("bob")
        _issue(own.directory, new)
        time.now += 2
        await client.request_enc_keys("bob")
        assert client.troubles
        new.configure_trust(kme.tls)
        time.now += 60
        await client.request_enc_keys("bob")
        assert client.troubles == {}


async def test_that_a_kme_does_not_take_renewed_files_stands_on_every_face(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "WRITE_DOWN_S", 0.1)
    site = with_status(
        make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address)
    )
    with shortened():
        async with app.running(site.config) as addresses:
            assert (await submit(addresses["outgoing"], mails.plain())).code == 250
            ca = kmes.state_dir / "ca.pem"
            right = ca.read_bytes()
            trustme.CA().cert_pem.write_to_path(ca)
            await until_written(site, "certificates_refused")
            assert (await submit(addresses["outgoing"], mails.plain().replace(b"<1@", b"<2@"))).code == 250
            assert (await numbers(addresses["status"])).sum("qumail_alarm", alarm="certificates_refused") == 1
            assert "KME kme does not take its renewed certificates" in (await page(addresses["status"])).text(
                "troubles"
            )
            _, _, out = await run("check", "--config", site.config_file)
            assert "WRONG  alarm certificates_refused kme" in out.decode()
            ca.write_bytes(right)
            await until_written(site)


async def test_a_request_under_way_ends_over_the_connection_that_it_has(own: Certificates) -> None:
    async with FakeKME(own, latency=0.3) as kme, kme.client(timeout=20) as client:
        await client.check_key_status("bob")
        asking = asyncio.create_task(client.request_enc_keys("bob", number=3))
        await kme.next_request()
        client.renew_certificates(anyway=True)
        assert len(await asking) == 3
        assert kme.connections == 1
        await client.request_enc_keys("bob")
        assert kme.connections == 2
        while kme.open_connections > 1:
            await asyncio.sleep(0)


async def test_files_that_are_gone_or_encrypted_leave_all_as_it_was(
    own: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeKME(own) as kme, kme.client(timeout=3) as client:
        key = own.directory / "sae.key"
        plain = key.read_bytes()
        key.unlink()
        client.renew_certificates(anyway=True)
        key.write_text(plain.decode().replace("EC PRIVATE KEY", "ENCRYPTED PRIVATE KEY"))
        client.renew_certificates(anyway=True)
        assert len(await client.request_enc_keys("bob")) == 1
    assert len([record for record in caplog.records if "not_renewed" in record.getMessage()]) == 2
    with pytest.raises(ConfigError):
        kme.client()


@pytest.mark.parametrize(("days", "said"), [(31, None), (29.5, "in 29 days"), (0.5, "in 0 days"), (-1, "ended on")])
def test_what_ends_within_thirty_days_is_told(own: Certificates, days: float, said: str | None) -> None:
    _issue(own.directory, own.authority, days=days)
    told = ClientTLS(**own.files, rules=TLSRules()).ending(NOW)
    assert len(told) == (said is not None)
    assert all(str(own.directory / "sae.pem") in each and "sae-alice" in each and (said or "") in each for each in told)


async def test_the_kmes_own_certificate_is_told_of_once_it_was_seen(own: Certificates) -> None:
    tls = own.server_tls("localhost")
    own.authority.issue_cert("localhost", not_after=NOW + timedelta(days=5)).configure_cert(tls)
    async with FakeKME(own, tls=tls) as kme, kme.client(timeout=3) as client:
        assert client.transport.tls.ending(NOW) == []
        await client.check_key_status("bob")
        [told] = client.transport.tls.ending(NOW)
    assert told.startswith("the KME's own certificate ends on ")


async def test_check_says_it(own: Certificates, kme: FakeKME, tmp_path: Path) -> None:
    _issue(own.directory, own.authority, days=10)
    config = _write(tmp_path, own.directory, url=kme.url)
    status, _, out = await run("check", "--config", config, "--json")
    problems = {finding["what"]: finding["problems"] for finding in json.loads(out)}
    assert "sae.pem: sae-alice ends on" in problems["KME one: certificates"][0]
    assert status == 1


async def test_sighup_reads_them_again(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, log: LogCapture) -> None:
    site = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address)
    async with app.running(site.config):
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(20):
            while not any(entry["event"] == "kme_certificates_renewed" for entry in log.entries):
                await asyncio.sleep(0)
