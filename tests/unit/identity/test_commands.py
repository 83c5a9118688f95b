"""`qumail-relay identity` as a person or a script meets it.
Standard: 0 fine, 1 something is wrong with what was asked about, 2 wrong usage; what is asked has an option.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from relay.cli.identity import identity
from relay.errors import ConfigError
from relay.identity import load_identity, load_peer_documents
from tests.unit.identity.homes import Home, copy_rsa_keys, make_home, write_config

BOBS = ("--domain", "bob.example")
"""What is expected of Bob."""


def run(home: Home, *arguments: str | Path, stdin: str = "") -> Result:
    """`qumail-relay identity ...` with the site's relay.toml."""
    command, *others = map(str, arguments)
    result = CliRunner().invoke(identity, [command, "--config", str(home.config_file), *others], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit | ConfigError), result.exception
    return result


def wrong(result: Result) -> str:
    """What the command says is wrong; the main program prints it and ends with status 1."""
    assert isinstance(result.exception, ConfigError), result.output
    return str(result.exception)


def exported(home: Home, tmp_path: Path) -> Path:
    path = tmp_path / f"{home.name}.json"
    assert run(home, "export", "-o", path).exit_code == 0
    return path


@pytest.mark.usefixtures("spare_is_made")
def test_new_makes_an_identity_and_a_passphrase_for_it(tmp_path: Path) -> None:
    home = write_config(tmp_path / "carol", "carol", identity='passphrase = "passphrase"')
    result = run(home, "new")
    assert result.exit_code == 0, result.output
    assert "making the key for RSA-4096 signing" in result.stderr
    passphrase = home.directory / "passphrase"
    assert stat.S_IMODE(passphrase.stat().st_mode) == 0o600
    made = load_identity(home.identity_directory, passphrase=passphrase)
    assert made.fingerprint in result.stdout
    assert "complete" in wrong(run(home, "new"))
    passphrase.unlink()
    assert "No such file" in wrong(run(home, "new", "--renew")), "no second passphrase for the same keys"


def test_new_completes_what_was_interrupted(alice: Home) -> None:
    alice.path("rsa_signing.*.pem").unlink()
    assert run(alice, "new").exit_code == 0
    assert alice.identity.rsa_signing


@pytest.mark.usefixtures("spare_is_made")
def test_renewing_is_visible_and_keeps_the_fingerprint(alice: Home) -> None:
    before = alice.identity
    result = run(alice, "new", "--renew", "--days", "100")
    assert result.exit_code == 0
    assert before.fingerprint in result.stdout
    assert "Older encryption keys, kept for opening: 2" in result.stdout


def test_csr_says_what_goes_where(rsa: Path, tmp_path: Path) -> None:
    home = write_config(tmp_path / "carol", "carol")
    copy_rsa_keys(rsa, home.identity_directory)
    result = run(home, "new", "--csr")
    assert result.exit_code == 0
    for pattern in ("signing.*.csr", "rsa_signing.*.csr", "rsa_encryption.*.csr", "kem.*.pub", "kem.*.cnf"):
        assert str(home.path(pattern)) in result.stdout
    assert str(home.identity_directory / "ca.pem") in result.stdout
    assert "put the certificate of the organisation's CA here" in wrong(run(home, "show"))


def test_without_the_table_every_command_says_so(alice: Home, tmp_path: Path) -> None:
    text = alice.config_file.read_text()
    start, end = text.index("[identity]"), text.index("[kmes.k]")
    alice.config_file.write_text(text[:start] + text[end:])
    (tmp_path / "x").touch()
    for arguments in (["new"], ["show"], ["export"], ["import", str(tmp_path / "x")]):
        assert "no [identity] table" in wrong(run(alice, *arguments))


def test_export_writes_a_document_and_shows_the_fingerprint(alice: Home, tmp_path: Path) -> None:
    result = run(alice, "export")
    assert json.loads(result.stdout)["format"] == 2
    assert alice.identity.fingerprint in result.stderr
    assert "cannot be written" in wrong(run(alice, "export", "-o", tmp_path / "no" / "where.json"))


def test_export_can_name_fewer_levels(alice: Home, bob: Home, tmp_path: Path) -> None:
    assert run(bob, "export", "-o", tmp_path / "b", "--level", "pqc", "--level", "rsa").exit_code == 0
    assert run(alice, "import", tmp_path / "b", "--yes", *BOBS).exit_code == 0
    assert load_peer_documents(alice.peers)["bob"].levels == ("pqc", "rsa")


def test_import_shows_the_fingerprint_and_asks(alice: Home, bob: Home, tmp_path: Path) -> None:
    path = exported(bob, tmp_path)
    for answer in ("", "n\n", "\n"):
        result = run(alice, "import", path, stdin=answer)
        assert result.exit_code == 1
        assert bob.identity.fingerprint in result.stdout
        assert load_peer_documents(alice.peers) == {}
    result = run(alice, "import", path, stdin="y\ny\n")
    assert result.exit_code == 0
    assert "A new peer" in result.stdout
    assert load_peer_documents(alice.peers)["bob"].fingerprint == bob.identity.fingerprint
    assert "Already pinned" in run(alice, "import", path).stdout


def test_what_follows_a_pinned_document_by_its_keys_needs_no_call_but_other_domains_are_asked_about(
    alice: Home, bob: Home, tmp_path: Path
) -> None:
    path = tmp_path / "b"
    path.write_bytes(bob.document())
    assert run(alice, "import", path, "--yes", *BOBS).exit_code == 0
    path.write_bytes(bob.document(levels=["pqc"]))
    newer = run(alice, "import", path)
    assert newer.exit_code == 0, newer.output
    assert "Is this the fingerprint" not in newer.output
    assert "Pinned as bob" in newer.output
    path.write_bytes(bob.document(sae_id="another"))
    assert run(alice, "import", path, stdin="n\n").exit_code == 1
    other = run(alice, "import", path, stdin="y\n")
    assert "fewer domains or another SAE ID" in other.output
    assert other.exit_code == 0


def test_import_takes_a_fingerprint_instead_of_asking(alice: Home, bob: Home, tmp_path: Path) -> None:
    path = exported(bob, tmp_path)
    said = "its fingerprint is another one"
    assert said in wrong(run(alice, "import", path, "--fingerprint", alice.identity.fingerprint))
    assert said in wrong(run(alice, "import", path, "--fingerprint", ""))
    assert said in wrong(run(alice, "import", path, "--yes", "--fingerprint", "1234"))
    assert load_peer_documents(alice.peers) == {}
    assert run(alice, "import", path, "--fingerprint", bob.identity.fingerprint.lower(), *BOBS).exit_code == 0
    assert "bob" in load_peer_documents(alice.peers)


def test_import_of_changed_keys_shows_both_fingerprints(alice: Home, bob: Home, rsa: Path, tmp_path: Path) -> None:
    assert run(alice, "import", exported(bob, tmp_path), "--yes", *BOBS).exit_code == 0
    somebody = make_home(tmp_path / "somebody", "bob", rsa)
    path = exported(somebody, tmp_path)
    assert "--replace" in wrong(run(alice, "import", path, "--yes"))
    result = run(alice, "import", path, "--replace", "--name", "bob", stdin="n\n")
    assert bob.identity.fingerprint in result.stdout
    assert somebody.identity.fingerprint in result.stdout
    assert "IT REPLACES" in result.stdout


def test_import_for_programs_does_not_ask(alice: Home, bob: Home, tmp_path: Path) -> None:
    path = exported(bob, tmp_path)
    assert run(alice, "import", path, "--json").exit_code == 2
    result = run(alice, "import", path, "--json", "--yes", "--name", "robert", *BOBS)
    said = json.loads(result.stdout)
    assert (said["change"], said["name"]) == ("new", "robert")
    assert said["fingerprint"] == bob.identity.fingerprint


def test_import_of_a_file_that_is_not_there_says_so(alice: Home, tmp_path: Path) -> None:
    result = run(alice, "import", tmp_path / "document", "--yes")
    assert result.exit_code == 2
    assert "does not exist" in result.output


@pytest.mark.parametrize("content", [b"", b"x" * 2**20 + b"x", b"\0" * 100])
def test_import_of_what_is_no_document_is_refused(alice: Home, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "document"
    path.write_bytes(content)
    assert wrong(run(alice, "import", path, "--yes"))
    assert load_peer_documents(alice.peers) == {}


def test_show_lists_ours_and_the_pinned_ones(alice: Home, bob: Home, tmp_path: Path) -> None:
    run(alice, "import", exported(bob, tmp_path), "--yes", *BOBS)
    result = run(alice, "show")
    assert result.exit_code == 0
    for each in (alice, bob):
        assert each.identity.fingerprint in result.stdout
    said = json.loads(run(alice, "show", "--json").stdout)
    assert said["fingerprint"] == alice.identity.fingerprint
    assert said["peers"]["bob"]["domains"] == ["bob.example"]
    assert said["ending"] == []
    assert set(said["certificates"]) == {"ca", "kem", "signing", "rsa_encryption", "rsa_signing"}


def test_show_ends_with_1_where_a_certificate_ends_soon(rsa: Path, tmp_path: Path) -> None:
    home = make_home(tmp_path / "soon", "soon", rsa, days=20)
    result = run(home, "show")
    assert result.exit_code == 1
    assert "our certificate for ML-KEM-1024 and P-384 encryption ends in 19 days" in result.stdout
    assert len(json.loads(run(home, "show", "--json").stdout)["ending"]) == 4


def test_every_command_explains_itself() -> None:
    for command in ("new", "show", "export", "import"):
        result = CliRunner().invoke(identity, [command, "--help"])
        assert result.exit_code == 0
        assert "--config" in result.output
