"""The library liboqs: how it is looked for, how its absence is said, and that its KEMs agree on secrets.
Nothing is downloaded; a stand-in is in the place of liboqs where that is not installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from relay.errors import (
    BadTag,
    KEMUnavailable,
)
from relay.formats.cms import KEMS
from relay.identity import (
    liboqs,
)
from tests.integration.schemes.further_kems import FAMILIES, HQC, ROOT, use
from tests.testlib.stand_in_oqs import stand_in


def python(script: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with a home of its own and no other program that it could start."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    clean = {"HOME": str(tmp_path), "PATH": str(tmp_path / "bin"), "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env=clean,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_without_the_native_library_nothing_is_downloaded_and_the_way_to_install_it_is_said(tmp_path: Path) -> None:
    for program in ("git", "cmake"):
        path = tmp_path / "bin" / program
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n: > {tmp_path}/started\n")
        path.chmod(0o755)
    # `oqs` would wait for five seconds before it begins; ours never comes so far.
    script = "import sys; from relay.identity import liboqs; print(liboqs.unavailable('hqc-256')); print('oqs' in sys.modules)"
    said = python(script, tmp_path, OQS_INSTALL_PATH=str(tmp_path / "nowhere"))
    if said.stdout.startswith("\n"):
        pytest.skip("the system's loader finds liboqs on this machine, so it cannot be missing")
    assert said.returncode == 0, said.stderr
    assert "liboqs" in said.stdout
    assert "pip install liboqs-python" in said.stdout
    assert said.stdout.endswith("False\n"), "it was not even imported"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin"]


def test_a_damaged_native_library_is_said_and_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "liboqs.so").write_bytes(b"no library")
    script = "from relay.identity import liboqs; print(liboqs.missing())"
    said = python(script, tmp_path, OQS_INSTALL_PATH=str(tmp_path))
    if said.stdout == "\n":
        pytest.skip("the system's loader finds liboqs on this machine")
    assert "cannot be loaded" in said.stdout
    assert "liboqs.so" in said.stdout


def test_without_the_python_package_the_way_to_install_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "oqs", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "Python package liboqs-python is missing" in str(liboqs._load.__wrapped__())


@pytest.mark.parametrize("fault", ["raise SystemExit('Could not load')", "raise RuntimeError('no')", "import no_such"])
def test_an_import_that_fails_or_wants_to_end_the_process_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    (tmp_path / "oqs.py").write_text(f"import os\nassert os.environ['PYOQS_VERSION'] == 'disabled'\n{fault}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "oqs", raising=False)
    monkeypatch.setattr(liboqs, "_no_native_library", lambda: "")
    monkeypatch.setenv("PYOQS_VERSION", "0.16.0")
    assert "does not load" in str(liboqs._load.__wrapped__())
    assert os.environ["PYOQS_VERSION"] == "0.16.0"


def test_nothing_is_imported_when_the_relay_starts(tmp_path: Path) -> None:
    script = "import sys, relay.cli, relay.process.app; print([name for name in sys.modules if name.startswith('oqs')])"
    assert python(script, tmp_path).stdout == "[]\n"


def test_a_library_without_the_algorithm_or_with_another_revision_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, stand_in("HQC-5"))
    assert "liboqs on this machine (0.16.0) does not have it" in liboqs.unavailable(HQC)
    other = stand_in()
    monkeypatch.setattr(other, "get_enabled_kem_mechanisms", lambda: ("HQC-256",))
    monkeypatch.setitem(sys.modules["tests.testlib.stand_in_oqs"].__dict__["_SIZES"], "HQC-256", (7245, 7317, 14_421))
    use(monkeypatch, other)
    assert "does not have it as our format wants it" in liboqs.unavailable(HQC)
    assert "not a KEM" in liboqs.unavailable("rot13")


@pytest.mark.usefixtures("library")
@FAMILIES
def test_each_kem_agrees_on_a_secret_and_another_key_gets_another(kem: str) -> None:
    ours, others = liboqs.generate(kem), liboqs.generate(kem)
    secret, ciphertext = liboqs.encapsulate(kem, ours.public_key)
    assert (len(ours.public_key), len(ciphertext)) == (KEMS[kem].public_key_octets, KEMS[kem].ciphertext_octets)
    assert len(secret) == 32
    assert liboqs.decapsulate(kem, ours.private_key, ciphertext) == secret
    assert liboqs.decapsulate(kem, others.private_key, ciphertext) != secret
    assert repr(ours) == "KEMKeys()"


@pytest.mark.usefixtures("library")
@FAMILIES
def test_keys_and_ciphertexts_of_another_size_never_reach_the_library(kem: str) -> None:
    keys = liboqs.generate(kem)
    _, ciphertext = liboqs.encapsulate(kem, keys.public_key)
    with pytest.raises(KEMUnavailable, match="public key"):
        liboqs.encapsulate(kem, keys.public_key[:-1])
    with pytest.raises(KEMUnavailable, match="another release"):
        liboqs.decapsulate(kem, keys.private_key + b"\0", ciphertext)
    for wrong in (ciphertext[:-1], ciphertext + b"\0", b""):
        with pytest.raises(BadTag):
            liboqs.decapsulate(kem, keys.private_key, wrong)
