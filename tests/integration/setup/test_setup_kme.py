"""`qumail-relay setup` and a KME of the site's own: its files are copied, and it is asked before anything is written.
Standard: deploy/INSTALL.md; ETSI GS QKD 014 V1.1.1 (Get status).
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from relay.config import load_config
from relay.kme import DevelopmentKMEs
from relay.kme.certificates import prepare
from tests.integration.setup.answered import PEERS, contents, invitation, run
from tests.testlib.identities import Identities

pytestmark = pytest.mark.usefixtures("without_the_end")


def test_a_kme_of_ones_own_is_asked_for_and_its_files_are_copied(home: Path, tmp_path: Path) -> None:
    prepare(pem := tmp_path / "kme", "localhost")
    typed = (
        "alice.example\nlater\nhttps://alice:hidden@127.0.0.1:1/\nhttps://127.0.0.1:1/\nsae-alice\nnowhere\n"
        f"{pem}/ca.pem\n{pem}/sae-2.pem\n{pem}/sae-1.key\n{pem}/sae-2.key\nmilter\nclear\nnone\n"
    )
    result = run(home, typed=typed)
    assert result.exit_code == 0, result.output
    assert "nowhere: cannot be read" in result.output
    assert "Not so:" in result.output.split("Key file")[1]
    assert "WRONG  KME https://127.0.0.1:1: KMEUnreachable" in result.output
    assert "Not so: https://127.0.0.1:1/: a KME knows us by our certificate" in result.output
    assert result.output.count("hidden") == 1, "as it was typed"
    config = load_config(home / "relay.toml")
    [kme] = config.kmes.values()
    assert (kme.url, config.site.sae_id) == ("https://127.0.0.1:1", "sae-alice")
    assert kme.key is not None
    assert kme.key.read_text() == (pem / "sae-2.key").read_text()
    assert config.outgoing is not None
    assert config.outgoing.milter is not None


def test_a_certificate_and_key_that_lie_alone_beside_the_ca_are_not_asked_for(home: Path, tmp_path: Path) -> None:
    prepare(made := tmp_path / "kme", "localhost")
    (pem := tmp_path / "from-the-kmes-operator").mkdir()
    for name, given in {"ca.pem": "root.crt", "sae-2.pem": "client.crt", "sae-2.key": "client.key"}.items():
        (pem / given).write_bytes((made / name).read_bytes())
    (pem / "README.pem").write_text("no certificate\n")
    typed = f"alice.example\nlater\nhttps://127.0.0.1:1/\nsae-alice\n{pem}/root.crt\nmilter\nclear\nnone\n"
    result = run(home, typed=typed)
    assert result.exit_code == 0, result.output
    assert "client.key" in result.output
    [kme] = load_config(home / "relay.toml").kmes.values()
    assert kme.key is not None
    assert kme.certificate is not None
    assert kme.key.read_text() == (made / "sae-2.key").read_text()
    assert kme.certificate.read_text() == (made / "sae-2.pem").read_text()


def test_a_key_that_is_not_the_certificates_is_refused_before_anything_is_written(home: Path, tmp_path: Path) -> None:
    prepare(pem := tmp_path / "kme", "localhost")
    files = ("--kme-ca", f"{pem}/ca.pem", "--kme-certificate", f"{pem}/sae-2.pem", "--kme-key", f"{pem}/sae-1.key")
    flags = ("--kme", "https://localhost:1", "--sae-id", "2", *files)
    result = run(home, "--yes", "--domain", "alice.example", "--postfix", "none", *flags)
    assert result.exit_code == 1
    assert "sae-1.key" in str(result.exception)
    assert not (home / "relay.toml").exists()


@pytest.mark.parametrize("name", ["sae-2.pem", "sae-2.key", "text"])
def test_a_file_without_the_certificate_of_a_ca_is_none(home: Path, tmp_path: Path, name: str) -> None:
    prepare(pem := tmp_path / "kme", "localhost")
    (pem / "text").write_text("no certificate\n")
    typed = f"alice.example\nlater\nhttps://127.0.0.1:1/\nsae-alice\n{pem}/{name}\n{pem}/ca.pem\n{pem}/sae-2.pem\n"
    asked = run(home, typed=f"{typed}{pem}/sae-2.key\n\n\nnone\n")
    assert f"Not so: {pem}/{name}: " in asked.output
    assert asked.exit_code == 0, asked.output
    (home / "relay.toml").unlink()
    files = ("--kme-ca", f"{pem}/{name}", "--kme-certificate", f"{pem}/sae-2.pem", "--kme-key", f"{pem}/sae-2.key")
    flags = ("--kme", "https://localhost:1", "--sae-id", "2", *files)
    result = run(home, "--yes", "--domain", "alice.example", "--postfix", "none", *flags)
    assert (result.exit_code, f"{pem}/{name}" in str(result.exception)) == (1, True)
    assert not (home / "relay.toml").exists()


async def test_a_kme_that_takes_the_site_for_another_sae_is_refused_before_anything_is_written(
    home: Path, tmp_path: Path, identities: Identities, kmes: DevelopmentKMEs
) -> None:
    pem = kmes.state_dir
    files = ("--kme-ca", f"{pem}/ca.pem", "--kme-certificate", f"{pem}/sae-2.pem", "--kme-key", f"{pem}/sae-2.key")
    peer = ("--peer", invitation(tmp_path, identities.bob), *PEERS)
    flags = ("--yes", "--domain", "alice.example", "--postfix", "none", "--kme", kmes.urls[0], *files, *peer)
    secret = ("--kme", kmes.urls[0].replace("://", "://alice:hidden@"))
    refused = await asyncio.to_thread(run, home, *flags, *secret, "--sae-id", "2")
    assert (refused.exit_code, "hidden" in f"{refused.output} {refused.exception}") == (1, False)
    wrong = await asyncio.to_thread(run, home, *flags, "--sae-id", "7")
    assert wrong.exit_code == 1
    assert "knows this relay as SAE '2', and [site] sae_id says '7'" in str(wrong.exception)
    assert not (home / "relay.toml").exists()
    right = await asyncio.to_thread(run, home, *flags, "--sae-id", "2")
    assert right.exit_code == 0, right.output
    assert f"ok     KME {kmes.urls[0]}" in right.output


@pytest.mark.parametrize("with_peer", [True, False])
async def test_another_sae_id_that_the_kme_does_not_know_us_by_replaces_nothing(
    home: Path, tmp_path: Path, identities: Identities, kmes: DevelopmentKMEs, with_peer: bool
) -> None:
    pem = kmes.state_dir
    files = ("--kme-ca", f"{pem}/ca.pem", "--kme-certificate", f"{pem}/sae-2.pem", "--kme-key", f"{pem}/sae-2.key")
    peer = ("--peer", invitation(tmp_path, identities.bob), *PEERS) if with_peer else ()
    flags = ("--yes", "--domain", "alice.example", "--postfix", "none", "--kme", kmes.urls[0], *files)
    assert (await asyncio.to_thread(run, home, *flags, *peer, "--sae-id", "2")).exit_code == 0
    before = contents(home)
    wrong = await asyncio.to_thread(run, home, "--replace", "--sae-id", "7", "--postfix", "none")
    assert wrong.exit_code == 1, wrong.output
    assert "SAE '2'" in str(wrong.exception)
    assert contents(home) == before
    same = await asyncio.to_thread(run, home, "--replace", "--sae-id", "2", "--postfix", "none")
    assert same.exit_code == 0, same.output


async def test_a_site_without_peers_has_its_kme_asked_by_check_and_development_keys_are_named(
    home: Path, kmes: DevelopmentKMEs
) -> None:
    pem = kmes.state_dir
    files = ("--kme-ca", f"{pem}/ca.pem", "--kme-certificate", f"{pem}/sae-2.pem", "--kme-key", f"{pem}/sae-2.key")
    flags = ("--yes", "--domain", "alice.example", "--postfix", "none", "--sae-id", "2", *files)
    await asyncio.to_thread(run, home, *flags, "--kme", kmes.urls[0])
    checked = await asyncio.to_thread(run, home, "--no-next-hops", group="check")
    assert checked.exit_code == 0, checked.output
    said = " ".join(checked.output.split())
    assert "knows this relay; no peer has its group 'default'" in said
    assert "NOTE KME kme gives DEVELOPMENT KEYS, NOT QUANTUM" in said
    await asyncio.to_thread(run, home, *flags, "--kme", "https://127.0.0.1:1", "--replace")
    checked = await asyncio.to_thread(run, home, "--no-next-hops", group="check")
    assert checked.exit_code == 1
    assert "WRONG  KME kme  KMEUnreachable" in checked.output
