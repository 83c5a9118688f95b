"""The certificates of the development KMEs: made once, made anew where they would not do, for their owner alone.
Standard: RFC 5280; PKCS #8.
"""

from __future__ import annotations

import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from relay.errors import ConfigError
from relay.keys.development import ENDPOINTS_FILE
from relay.kme import DevelopmentKMEs, certificates
from tests.integration.kme.clients import FILES, Site, no_space, running


async def test_the_first_start_makes_every_file_for_its_owner_only(site: Site) -> None:
    state_dir = site.kmes.state_dir
    assert {path.name for path in state_dir.iterdir()} == FILES | {ENDPOINTS_FILE}
    assert stat.S_IMODE(state_dir.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in state_dir.iterdir()} == {0o600}


async def test_keys_are_pkcs8_and_names_are_as_promised(site: Site) -> None:
    names = {"km-1": "KM1", "km-2": "KM2", "sae-1": "sae-1", "sae-2": "sae-2"}
    for file, name in names.items():
        certificate = x509.load_pem_x509_certificate((site.kmes.state_dir / f"{file}.pem").read_bytes())
        assert certificate.subject.rfc4514_string() == f"CN={name}"
        assert (site.kmes.state_dir / f"{file}.key").read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    authority = x509.load_pem_x509_certificate((site.kmes.state_dir / "ca.pem").read_bytes())
    assert authority.not_valid_after_utc - datetime.now(UTC) > timedelta(days=3650)


async def test_a_restart_keeps_the_certificates(tmp_path: Path) -> None:
    before = await files_after_a_run(tmp_path)
    assert await files_after_a_run(tmp_path) == before


@pytest.mark.parametrize("missing", sorted(FILES))
async def test_an_incomplete_set_is_made_anew_as_a_whole(tmp_path: Path, missing: str) -> None:
    before = await files_after_a_run(tmp_path)
    (tmp_path / "kme" / missing).unlink()
    await all_made_anew(tmp_path, before)


@pytest.mark.parametrize("damage", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
@pytest.mark.parametrize("file", ["ca.pem", "km-2.key", "sae-1.pem"])
async def test_a_damaged_set_is_made_anew(tmp_path: Path, file: str, damage: bytes) -> None:
    before = await files_after_a_run(tmp_path)
    (tmp_path / "kme" / file).write_bytes(damage)
    await all_made_anew(tmp_path, before)


@pytest.mark.parametrize("name", ["sae-2", "km-1", "ca"])
async def test_a_set_that_does_not_belong_together_is_made_anew(tmp_path: Path, name: str) -> None:
    before = await files_after_a_run(tmp_path)
    certificates.prepare(tmp_path / "other", "localhost")
    for kind in ("pem", "key"):
        shutil.copy(tmp_path / "other" / f"{name}.{kind}", tmp_path / "kme")
    await all_made_anew(tmp_path, before)


async def test_a_key_of_another_certificate_is_made_anew(tmp_path: Path) -> None:
    before = await files_after_a_run(tmp_path)
    shutil.copy(tmp_path / "kme" / "sae-1.key", tmp_path / "kme" / "sae-2.key")
    await all_made_anew(tmp_path, before)


async def test_swapped_identities_are_made_anew(tmp_path: Path) -> None:
    before = await files_after_a_run(tmp_path)
    for kind in ("pem", "key"):
        shutil.copy(tmp_path / "kme" / f"sae-1.{kind}", tmp_path / "kme" / f"sae-2.{kind}")
    await all_made_anew(tmp_path, before)


async def test_a_key_that_others_could_read_is_made_anew(tmp_path: Path) -> None:
    before = await files_after_a_run(tmp_path)
    (tmp_path / "kme" / "sae-2.key").chmod(0o644)
    await all_made_anew(tmp_path, before)


@pytest.mark.parametrize("days", [368, 400, 4000])
async def test_certificates_that_have_expired_or_soon_will_are_made_anew(tmp_path: Path, days: int) -> None:
    certificates.prepare(tmp_path / "kme", "localhost", now=datetime.now(UTC) - timedelta(days=days))
    await all_made_anew(tmp_path, certificate_files(tmp_path))


def test_processes_that_start_together_end_with_one_set(tmp_path: Path) -> None:
    def prepare(_: int) -> dict[str, bytes]:
        certificates.prepare(tmp_path / "kme", "localhost")
        return certificate_files(tmp_path)

    with ThreadPoolExecutor(8) as pool:
        first, *others = pool.map(prepare, range(8))
    assert all(other == first for other in others)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates.prepare(tmp_path / "kme", "localhost")
    before = certificate_files(tmp_path)
    monkeypatch.setattr(Path, "replace", no_space)
    with pytest.raises(ConfigError, match="No space left"):
        certificates.prepare(tmp_path / "kme", "localhost", now=datetime.now(UTC) + timedelta(days=800))
    assert certificate_files(tmp_path) == before
    assert set(before) == FILES


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
async def test_a_directory_that_others_may_enter_is_refused_and_left_as_it_is(tmp_path: Path, mode: int) -> None:
    state_dir = tmp_path / "shared"
    state_dir.mkdir()
    state_dir.chmod(mode)
    with pytest.raises(ConfigError, match="make it yours alone"):
        await DevelopmentKMEs(state_dir=state_dir, ports=(0, 0)).start()
    assert stat.S_IMODE(state_dir.stat().st_mode) == mode
    assert list(state_dir.iterdir()) == []


async def test_a_state_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kme").write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot be made into a directory"):
        await DevelopmentKMEs(state_dir=tmp_path / "kme", ports=(0, 0)).start()


async def files_after_a_run(tmp_path: Path) -> dict[str, bytes]:
    async with running(tmp_path) as site:
        assert (await site.alice.get("1/status")).status == 200
        assert (await site.bob.get("2/status")).status == 200
    return certificate_files(tmp_path)


def certificate_files(tmp_path: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (tmp_path / "kme").iterdir()}


async def all_made_anew(tmp_path: Path, before: dict[str, bytes]) -> None:
    after = await files_after_a_run(tmp_path)
    assert set(after) == FILES
    assert not [name for name in FILES if after[name] == before.get(name)]
