"""[submission] with a fault is refused before anything listens, and each fault says what to do.
Standard: file:line: setting: what is wrong.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from relay.config import load_config
from relay.errors import ConfigError
from relay.process import app
from tests.integration.entry.submission.conftest import RELAY_TOML, Start, write_certificate, write_users

USERS = 'users = "users"'


def _write(directory: Path, *, users: str = USERS, changes: dict[str, str] | None = None) -> Path:
    text = RELAY_TOML.format(next_hop="127.0.0.1:25", users=users, settings="")
    for old, new in (changes or {}).items():
        assert old in text
        text = text.replace(old, new)
    (directory / "relay.toml").write_text(text)
    return directory / "relay.toml"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({'[outgoing]\nnext_hop = "127.0.0.1:25"\n': ""}, "submission: [outgoing] is not set, so there is no next hop"),
        ({'listen = "127.0.0.1:0"\nlisten_tls = "127.0.0.1:0"\n': ""}, "submission: neither listen (STARTTLS) nor listen_tls"),
        ({USERS: ""}, "submission: neither users (a password file) nor dovecot_auth (a socket of Dovecot's) is set"),
        ({"127.0.0.1:0": "127.0.0.1:5870"}, "submission.listen_tls: submission.listen already listens there"),
        ({'certificate = "relay.pem"\n': ""}, "submission.certificate: missing"),
        ({USERS: f"{USERS}\nfailed_logins = 0"}, "submission.failed_logins: "),
        ({USERS: f"{USERS}\nuser = 3"}, "submission.user: unknown setting; did you mean 'users'?"),
    ],
)  # fmt: skip
def test_a_fault_is_named(tmp_path: Path, changes: dict[str, str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(_write(tmp_path, changes=changes))
    assert any(f"relay.toml:{line}" in problem for problem in caught.value.problems for line in range(1, 30))
    assert any(expected in problem for problem in caught.value.problems), caught.value.problems


def test_outgoing_needs_an_address_of_its_own_only_without_submission(tmp_path: Path) -> None:
    path = _write(tmp_path)
    assert load_config(path).outgoing is not None
    before, _, after = path.read_text().partition("[submission]")
    path.write_text(before + "[policies]" + after.partition("[policies]")[2])
    with pytest.raises(ConfigError, match="outgoing: none of listen"):
        load_config(path)


async def test_a_relay_without_its_certificate_does_not_start(tmp_path: Path) -> None:
    write_users(tmp_path / "users", "ann:-:\n")
    await _does_not_start(_write(tmp_path), "relay.pem: no such file")


async def test_a_relay_without_its_password_file_does_not_start(tmp_path: Path, ca: trustme.CA) -> None:
    write_certificate(tmp_path, ca)
    await _does_not_start(
        _write(tmp_path), "users: No such file or directory: the first user makes it: qumail-relay users add"
    )


async def test_a_password_file_that_others_can_read_is_not_used(tmp_path: Path, ca: trustme.CA) -> None:
    write_certificate(tmp_path, ca)
    write_users(tmp_path / "users", "ann:-:\n")
    (tmp_path / "users").chmod(0o644)
    await _does_not_start(_write(tmp_path), "mode 0644 lets others read or write it: chmod 600")


async def test_a_taken_port_is_named(start: Start, tmp_path: Path, ca: trustme.CA) -> None:
    write_certificate(tmp_path, ca)
    write_users(tmp_path / "users", "ann:-:\n")
    async with start() as server:
        changes = {'listen_tls = "127.0.0.1:0"': f'listen_tls = "{server.submission_tls}"'}
        await _does_not_start(_write(tmp_path, changes=changes), "submission.listen_tls: cannot listen on 127.0.0.1:")


async def _does_not_start(path: Path, why: str) -> None:
    directory = path.parent / "policies"
    directory.mkdir()
    (directory / "default.toml").write_text('levels = ["plaintext"]\n')
    with pytest.raises(ConfigError, match=why):
        async with app.running(load_config(path)):
            raise AssertionError("it started")
