"""`qumail-relay users`, and what `check` says of certificate, password file and Dovecot's socket.
Standard: exit status 0 fine, 1 something is wrong, 2 wrong usage; a password is never an argument and never shown.
"""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from argon2 import PasswordHasher
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives import serialization

from relay.cli import cli
from relay.entry.server_tls import certificate_state
from relay.entry.smtp.users import UserFile, read_users
from relay.errors import ConfigError
from tests.integration.entry.submission.conftest import RELAY_TOML, quick_hasher, write_certificate, write_users


@pytest.fixture(autouse=True)
def _quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes that are quickly made, but where these are what is looked at."""
    if "hashes_are" not in request.node.name:
        monkeypatch.setattr("relay.entry.smtp.users.PasswordHasher", quick_hasher)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the password file will be; its directory is nobody else's."""
    directory = tmp_path / "own"
    directory.mkdir(mode=0o700)
    return directory / "users"


def users(file: Path, *arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(cli, ["users", arguments[0], "--file", str(file), *arguments[1:]], input=stdin)


def test_an_added_user_can_log_in(file: Path) -> None:
    assert users(file, "add", "ann@alice.example", "--stdin", stdin="correct horse\nmore\n").exit_code == 0
    assert users(file, "add", "printer", "@alice.example", "<>", "--stdin", stdin="battery staple").exit_code == 0
    known = UserFile(file)
    ann = known.verify("ann@ALICE.example", "correct horse")
    assert ann is not None
    assert ann.addresses == ("ann@alice.example",)
    assert known.verify("ann@alice.example", "correct horse\n") is None
    printer = known.verify("printer", "battery staple")
    assert printer is not None
    assert printer.rights.null
    printer.rights.check_sender("anybody@alice.example")


def test_a_password_may_be_typed_twice_at_the_terminal(file: Path) -> None:
    done = users(file, "add", "ann@alice.example", stdin="correct horse\ncorrect horse\n")
    assert done.exit_code == 0
    assert "correct horse" not in done.output
    assert UserFile(file).verify("ann@alice.example", "correct horse")
    assert users(file, "add", "ben@alice.example", stdin="one password\nanother one\n").exit_code != 0
    assert list(read_users(file)) == ["ann@alice.example"]


def test_a_password_is_the_same_in_either_spelling_of_its_letters(file: Path) -> None:
    users(file, "add", "ann@alice.example", "--stdin", stdin="pa\u0308ssword")
    assert UserFile(file).verify("ann@alice.example", "p\u00e4ssword")


def test_hashes_are_argon2id_with_the_default_parameters(file: Path) -> None:
    users(file, "add", "ann@alice.example", "--stdin", stdin="correct horse")
    [user] = read_users(file).values()
    assert user.password_hash.startswith("$argon2id$")
    assert not PasswordHasher().check_needs_rehash(user.password_hash)


def test_a_new_password_leaves_the_addresses(file: Path) -> None:
    users(file, "add", "ann", "ann@alice.example", "--stdin", stdin="correct horse")
    assert users(file, "add", "ann", "--stdin", stdin="battery staple").exit_code == 0
    [user] = read_users(file).values()
    assert user.addresses == ("ann@alice.example",)
    assert UserFile(file).verify("ann", "battery staple")
    assert UserFile(file).verify("ann", "correct horse") is None


def test_the_file_is_written_whole_for_its_owner_alone_and_keeps_its_comments(file: Path) -> None:
    write_users(file, "# ask Ben before you change this\n\nben:-:ben@alice.example\n")
    before = file.stat().st_ino
    users(file, "add", "ann@alice.example", "--stdin", stdin="correct horse")
    assert file.read_text().startswith(
        "# ask Ben before you change this\n\nben:-:ben@alice.example\nann@alice.example:$"
    )
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.stat().st_ino != before
    assert [path.name for path in file.parent.iterdir()] == ["users"]


def test_users_are_listed_without_their_hashes(file: Path) -> None:
    users(file, "add", "ann@alice.example", "--stdin", stdin="correct horse")
    users(file, "add", "ben", "*", "--no-password")
    for arguments in (["list"], ["list", "--json"]):
        shown = users(file, *arguments).output
        assert "ann@alice.example" in shown
        assert "$" not in shown
    assert json.loads(users(file, "list", "--json").output) == [
        {"name": "ann@alice.example", "addresses": ["ann@alice.example"], "password": True},
        {"name": "ben", "addresses": ["*"], "password": False},
    ]
    assert UserFile(file).verify("ben", "-") is None


def test_a_removed_user_is_gone(file: Path) -> None:
    users(file, "add", "ann@alice.example", "--stdin", stdin="correct horse")
    assert users(file, "remove", "ann@alice.example").exit_code == 0
    assert read_users(file) == {}
    missing = users(file, "remove", "ann@alice.example")
    assert isinstance(missing.exception, ConfigError)
    assert "no user ann@alice.example" in str(missing.exception)


@pytest.mark.parametrize(
    ("arguments", "stdin", "what"),
    [
        (["ann"], "correct horse", "'ann' is no address; write user@domain, @domain, * or <>"),
        (["ann", "a b"], "correct horse", "'a b' is no address"),
        (["a:b@alice.example"], "correct horse", "a line is name:hash:addresses"),
        (["a b@alice.example"], "correct horse", "is no user name"),
        (["#ann@alice.example"], "correct horse", "is no user name"),
        (["ann@alice.example"], "short", "the password is shorter than 8 characters"),
        (["ann@alice.example"], "", "the password is shorter than 8 characters"),
        (["ann@alice.example", "correct horse"], "correct horse", "'correct horse' is no address"),
    ],
)
def test_what_cannot_be_a_user_is_wrong_usage(file: Path, arguments: list[str], stdin: str, what: str) -> None:
    done = users(file, "add", *arguments, "--stdin", stdin=stdin)
    assert done.exit_code == 2
    assert what in " ".join(done.output.split())
    assert not file.exists()


@pytest.mark.parametrize(
    ("text", "mode", "what"),
    [
        ("ann:-:ann@alice.example\n", 0o640, "mode 0640 lets others read or write it: chmod 600"),
        ("ann:-\n", 0o600, "users:1: a line is name:hash:addresses"),
        ("# one\nann:secret:*\n", 0o600, "users:2: user 'ann' has no argon2 hash"),
        ("ann:$2y$05$abcdefghijklmnopqrstuv:*\n", 0o600, "users:1: user 'ann' has no argon2 hash"),
        ("ann:-:*\nAnn:-:*\nann:-:*\n", 0o600, "users:3: user 'ann' is there twice"),
        ("a@b.example:-:*\na@B.example:-:*\n", 0o600, "users:2: user 'a@B.example' is there twice"),
        ("ann:-:ann@alice.example,boss\n", 0o600, "users:1: 'boss' is no address"),
        (":-:*\n", 0o600, "users:1: '' is no user name"),
        ("ann:$argon2id$v=19$m=4194304,t=1,p=1$c29tZXNhbHQ$aGFzaA:*\n", 0o600, "takes 4194304 KiB of memory"),
        ("\xff", 0o600, "not UTF-8"),
    ],
)
def test_check_names_what_is_wrong_with_the_file(file: Path, text: str, mode: int, what: str) -> None:
    file.write_bytes(text.encode("latin-1"))
    file.chmod(mode)
    done = users(file, "check")
    assert isinstance(done.exception, ConfigError)
    assert what in str(done.exception)
    assert "secret" not in str(done.exception)


def test_a_good_file_is_fine(file: Path) -> None:
    write_users(file, "ann:-:\n")
    done = users(file, "check")
    assert (done.exit_code, done.output) == (0, f"{file}: 1 users, nothing wrong\n")


def test_the_commands_find_the_configured_file(tmp_path: Path) -> None:
    (tmp_path / "relay.toml").write_text(RELAY_TOML.format(next_hop="127.0.0.1:25", users='users = "who"', settings=""))
    (tmp_path / "who").touch(mode=0o600)
    done = CliRunner().invoke(cli, ["users", "check", "--config", str(tmp_path / "relay.toml")])
    assert done.output == f"{tmp_path}/who: 0 users, nothing wrong\n"


def test_check_looks_at_everything_that_submission_needs(tmp_path: Path, ca: trustme.CA) -> None:
    both = 'users = "users"\ndovecot_auth = "nothing-here"'
    (tmp_path / "relay.toml").write_text(RELAY_TOML.format(next_hop="127.0.0.1:25", users=both, settings=""))
    write_certificate(tmp_path, ca)
    (tmp_path / "relay.key").chmod(0o644)
    write_users(tmp_path / "users", "ann:-:\n")
    done = CliRunner().invoke(cli, ["check", "--json", "--config", str(tmp_path / "relay.toml")])
    found = {each["what"]: each for each in json.loads(done.output) if each["what"].startswith("submission")}
    assert "for relay.alice.example, until" in found["submission certificate"]["detail"]
    [rights] = [each["problems"] for each in json.loads(done.output) if each["what"] == "rights"]
    assert any("relay.key: everybody can read this private file: chmod o-r " in each for each in rights)
    assert found["submission users"] == {
        "what": "submission users",
        "detail": f"{tmp_path}/users: 1 users",
        "problems": [],
    }
    assert "nothing-here" in str(found["submission dovecot_auth"]["problems"])


@pytest.mark.parametrize(
    ("days", "what"),
    [(-1, "is valid only from"), (1, ""), (25, "expires on"), (31, "expired on")],
)
def test_check_warns_before_a_certificate_expires(tmp_path: Path, days: int, what: str) -> None:
    now = datetime.now(UTC)
    certificate = trustme.CA().issue_cert("relay.alice.example", not_before=now, not_after=now + timedelta(days=30))
    _write(tmp_path, certificate, certificate)
    _, problems = certificate_state(tmp_path / "relay.pem", tmp_path / "relay.key", now + timedelta(days=days))
    assert bool(problems) == bool(what)
    assert what in " ".join(problems)


def test_a_key_of_another_certificate_is_named(tmp_path: Path, ca: trustme.CA) -> None:
    _write(tmp_path, ca.issue_cert("relay.alice.example"), ca.issue_cert("relay.alice.example"))
    _, [problem] = certificate_state(tmp_path / "relay.pem", tmp_path / "relay.key", datetime.now(UTC))
    assert "the key is another certificate's" in problem


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [("relay.pem", None, "no such file"), ("relay.key", "", "cannot be used"), ("relay.pem", "garbage", "cannot be")],
)
def test_files_that_are_no_certificate_and_key_are_named(
    tmp_path: Path, ca: trustme.CA, name: str, content: str | None, what: str
) -> None:
    write_certificate(tmp_path, ca)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    _, [problem] = certificate_state(tmp_path / "relay.pem", tmp_path / "relay.key", datetime.now(UTC))
    assert what in problem
    assert name in problem


def test_an_encrypted_key_is_a_fault_and_not_a_question_at_the_terminal(tmp_path: Path, ca: trustme.CA) -> None:
    write_certificate(tmp_path, ca)
    key = serialization.load_pem_private_key((tmp_path / "relay.key").read_bytes(), None)
    (tmp_path / "relay.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"x"),
        )
    )
    _, [problem] = certificate_state(tmp_path / "relay.pem", tmp_path / "relay.key", datetime.now(UTC))
    assert "the private key is encrypted" in problem


def _write(directory: Path, certificate: trustme.LeafCert, key: trustme.LeafCert) -> None:
    (directory / "relay.pem").write_bytes(certificate.cert_chain_pems[0].bytes())
    (directory / "relay.key").write_bytes(key.private_key_pem.bytes())
    (directory / "relay.key").chmod(0o600)
