"""TLS under a pre-shared key, against OpenSSL's own server: only a provider that has the key is spoken to.
Standard: draft-cisco-skip; RFC 8446, 4.2.11; RFC 5487 and RFC 5489.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from relay.config import KMESettings
from relay.errors import ConfigError, KMEMisconfigured, KMEUnreachable
from relay.keys.build import km_client
from relay.keys.psk import PSK, PSKTLS
from relay.keys.skip import SKIPClient
from tests.testlib.fake_kme import Certificates

KEY = "5e" * 32
needs_python_3_13 = pytest.mark.skipif(sys.version_info < (3, 13), reason="Python has TLS-PSK from 3.13 on")
CAPABILITIES = '{"key": true, "localSystemID": "alice", "remoteSystemID": ["bob"]}'
VERSIONS = pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])


@pytest.fixture
def psk(tmp_path: Path) -> PSK:
    return written(tmp_path, KEY)


def written(directory: Path, key: str) -> PSK:
    file = directory / "skip.psk"
    file.write_text(f"{key}\n")
    file.chmod(0o600)
    return PSK("alice-relay", file)


def reply(body: str) -> str:
    """As `openssl s_server -HTTP` sends a file: with its own header."""
    return f"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"


@asynccontextmanager
async def provider(directory: Path, *options: str) -> AsyncIterator[str]:
    """A key provider that has one key; its URL."""
    (directory / "capabilities").write_text(reply(CAPABILITIES))
    (directory / "key?remoteSystemID=bob&size=256").write_text(reply('{"keyId": "0a1b", "key": "' + "c7" * 31 + '01"}'))
    command = ["openssl", "s_server", "-accept", "127.0.0.1:0", "-HTTP", *options]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=directory, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        stdin=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            while not (found := re.match(rb"ACCEPT .*:(\d+)", await process.stdout.readline())):
                assert process.returncode is None
        # What it says of each connection must be read, or it stops.
        reading = asyncio.create_task(process.stdout.read())
        yield f"https://127.0.0.1:{found[1].decode()}"
    finally:
        process.kill()
        await process.wait()
        await reading


def with_psk(key: str) -> list[str]:
    return ["-psk", key, "-psk_identity", "alice-relay", "-nocert"]


def client(url: str, psk: PSK, **options: Any) -> SKIPClient:
    return SKIPClient(url, psk=psk, **{"retry_attempts": 0, "timeout": 5, **options})


@needs_python_3_13
@VERSIONS
async def test_a_provider_that_has_the_key_gives_keys(psk: PSK, tmp_path: Path, version: str) -> None:
    async with provider(tmp_path, version, *with_psk(KEY)) as url, client(url, psk) as skip:
        assert (await skip.check_key_status("bob")).source_KME_ID == "alice"
        [key] = await skip.request_enc_keys("bob")
    assert (key.key_ID, key.key) == ("0a1b", bytes.fromhex("c7" * 31 + "01"))


@needs_python_3_13
@VERSIONS
async def test_a_provider_with_another_key_is_not_spoken_to(psk: PSK, tmp_path: Path, version: str) -> None:
    async with provider(tmp_path, version, *with_psk("5f" * 32)) as url, client(url, psk) as skip:
        with pytest.raises((KMEMisconfigured, KMEUnreachable)):
            await skip.check_key_status("bob")


@needs_python_3_13
@VERSIONS
async def test_a_provider_that_shows_a_certificate_in_place_of_the_key_is_not_spoken_to(
    psk: PSK, tmp_path: Path, certificates: Certificates, version: str
) -> None:
    leaf = certificates.authority.issue_cert("127.0.0.1", "localhost")
    leaf.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    async with provider(tmp_path, version, "-cert", "server.pem") as url, client(url, psk) as skip:
        with pytest.raises((KMEMisconfigured, KMEUnreachable)):
            await skip.check_key_status("bob")


@needs_python_3_13
async def test_a_new_key_is_used_and_one_that_cannot_be_used_leaves_the_former(
    psk: PSK, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with provider(tmp_path, "-tls1_3", *with_psk("6f" * 32)) as url, client(url, psk) as skip:
        Path(psk.file).write_text("no key")
        skip.renew_certificates(anyway=True)
        assert "no key" not in skip.renewal.refused
        assert "not written in hexadecimal" in skip.renewal.refused
        Path(psk.file).write_text("6f" * 32)
        skip.renew_certificates(anyway=True)
        assert (await skip.check_key_status("bob")).source_KME_ID == "alice"
    assert ("kme_certificates_renewed" in caplog.text, "6f6f" in caplog.text) == (True, False)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="this Python has TLS-PSK")
def test_an_older_python_says_that_it_cannot(psk: PSK) -> None:
    with pytest.raises(ConfigError, match=r"needs Python 3\.13 or later"):
        client("https://127.0.0.1:1", psk)


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        ("zz" * 32, 0o600, "not written in hexadecimal"),
        ("5e" * 15, 0o600, "15 bytes; a pre-shared key has 16 to 64"),
        ("5e" * 65, 0o600, "65 bytes"),
        ("", 0o600, "0 bytes"),
        (KEY, 0o644, "every user of this machine may use it"),
    ],
)
def test_a_file_that_holds_no_key_or_shows_it_to_everybody_is_refused(
    psk: PSK, content: str, mode: int, said: str
) -> None:
    Path(psk.file).write_text(content)
    Path(psk.file).chmod(mode)
    with pytest.raises(ConfigError, match=said) as refused:
        psk.read()
    assert "5e5e" not in str(refused.value)
    assert "zz" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"psk_file": "/k", "psk_identity": "a"}, 'psk_file belongs to interface = "skip"'),
        ({"psk_file": "/k", "interface": "skip"}, "psk_identity: needed beside psk_file"),
        ({"psk_identity": "a", "interface": "skip"}, "psk_identity is set without psk_file"),
        ({"psk_file": "/k", "psk_identity": "a", "interface": "skip", "ca": "/c"}, "psk_file counts alone"),
        ({"psk_file": "/k", "psk_identity": "a", "interface": "skip", "kme_id": "x"}, "psk_file counts alone"),
        ({"ca": "/c", "key": "/k"}, "certificate: needed"),
        ({}, "ca, certificate, key: needed"),
    ],
)
def test_what_authenticates_both_sides_is_whole(settings: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        KMESettings.model_validate({"url": "https://kme.example"} | settings)


@needs_python_3_13
def test_the_settings_of_relay_toml_make_such_a_client(psk: PSK) -> None:
    settings = {"url": "https://kme.example", "interface": "skip", "psk_identity": "a", "psk_file": str(psk.file)}
    made = km_client("kme", KMESettings.model_validate(settings))
    assert isinstance(made.transport.tls, PSKTLS)
    assert made.transport.tls.ends() == []
