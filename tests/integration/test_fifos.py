"""No file that settings name is waited for: in place of one stands a FIFO, at whose other end nobody is.
Standard: "where a new file cannot be used, what was in force stays so, and the log has an error that names the file".
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path

import pytest
import trustme
from structlog.testing import capture_logs

from relay.config import IMAPSettings
from relay.entry.imap.session import Credential, connected
from relay.errors import ConfigError
from relay.journey.shadow import ShadowRecord, read_shadow
from relay.keys.psk import PSK
from relay.kme import DevelopmentKMEs
from tests.integration.test_reloading import until
from tests.testlib.relay_command import run
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site
from tests.testlib.submit import submit
from tests.testlib.workers import POLICIES, numbered, workers

STATUS = '\n[status]\nlisten = "localhost:0"\ncertificate = "status.pem"\nkey = "status.key"\ntoken = "status.token"\n'
KME_FILES = ("ca.pem", "sae-2.pem", "sae-2.key")


@pytest.fixture(name="site")
def _site(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> Site:
    """With [status] over TLS, and files of its own for the KME."""
    state = shutil.copytree(kmes.state_dir, tmp_path / "files")
    made = make_site(
        tmp_path / "alice", "alice", state=state, kme_url=kmes.urls[0], outgoing=sink.address, policies=POLICIES,
        kme_settings="prefetch = false",
    )  # fmt: skip
    pair = trustme.CA().issue_cert("localhost")
    pair.cert_chain_pems[0].write_to_path(made.directory / "status.pem")
    pair.private_key_pem.write_to_path(made.directory / "status.key")
    (made.directory / "status.key").chmod(0o600)
    (made.directory / "status.token").touch(mode=0o600)
    (made.directory / "status.token").write_text("t" * 40)
    made.config_file.write_text(made.config_file.read_text() + STATUS)
    return made


def made_a_fifo(path: Path) -> None:
    """It takes the file's place at once, as a renewal does."""
    os.mkfifo(path.with_name("fifo"), 0o600)
    path.with_name("fifo").rename(path)


@pytest.mark.parametrize("name", KME_FILES)
async def test_a_fifo_in_place_of_a_file_for_the_kme_holds_up_no_worker(site: Site, tmp_path: Path, name: str) -> None:
    async with workers(site, 2) as relay:
        assert (await submit(relay.addresses["outgoing"], numbered(1))).code == 250
        made_a_fifo(tmp_path / "files" / name)
        relay.process.send_signal(signal.SIGHUP)
        for worker in (1, 2):
            refused = await until(relay, "kme_certificates_not_renewed", worker=worker)
            assert f"{tmp_path}/files/{name}: cannot be read: not a regular file" in refused["problems"]
        async with asyncio.timeout(60):
            assert (await submit(relay.addresses["outgoing"], numbered(2))).code == 250
            status, *said = await run("check", "--config", site.config_file)
        assert status == 1
        assert "not a regular file" in str(said)


@pytest.mark.parametrize("name", ["status.pem", "status.key"])
async def test_a_fifo_in_place_of_the_certificate_of_status_leaves_all_else_read_again(site: Site, name: str) -> None:
    async with workers(site, 2) as relay:
        made_a_fifo(site.directory / name)
        refused = await until(relay, "certificate_not_reloaded")
        assert refused["problems"] == [f"{site.directory}/{name}: cannot be read: not a regular file"]
        site.write_policies({"default.toml": 'levels = ["plaintext"]\nreason = "public"\n'})
        for worker in (1, 2):
            await until(relay, "policies_loaded", worker=worker)
        async with asyncio.timeout(60):
            status, *said = await run("check", "--config", site.config_file)
        assert status == 1
        assert "not a regular file" in str(said)


async def test_a_fifo_in_place_of_a_file_that_is_read_later_is_an_error_at_once(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    with pytest.raises(ConfigError, match=f"{fifo}: .*not a regular file"):
        PSK("alice", fifo).read()
    with pytest.raises(ConfigError, match=f"{fifo}: .*not a regular file"):
        list(read_shadow(fifo))
    account = IMAPSettings(host="localhost", user="ben@bob.example", password_file=fifo, ca=fifo)
    with pytest.raises(ConfigError, match=f"{fifo}: .*not a regular file"):
        async with connected(account, Credential("ben", "secret", "PLAIN")):
            pass
    with capture_logs() as logs:
        ShadowRecord(fifo).add([])
    assert [(each["event"], each["file"]) for each in logs] == [("shadow_record_not_written", str(fifo))]
