"""The site secret: who may read its file, what it seals, how a newer one takes its place.
Standard: no failure shows a secret, and none of them is taken for another.
"""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from relay.errors import ConfigError, StoreUnavailable
from relay.store.secret import SealedOctets, SiteSecret

FIXED = bytes(range(32))
FIXED_LINE = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")


def written(path: Path, content: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


def test_a_missing_secret_is_made_once_and_for_us_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "secret"
    made = SiteSecret.load_or_create(path)
    assert SiteSecret.load_or_create(path).ids == SiteSecret.load(path).ids == made.ids
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_every_secret_is_another(tmp_path: Path) -> None:
    assert SiteSecret.load_or_create(tmp_path / "a").ids != SiteSecret.load_or_create(tmp_path / "b").ids


def test_relays_that_start_at_once_have_one_secret(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as threads:
        made = list(threads.map(SiteSecret.load_or_create, [tmp_path / "secret"] * 64))
    assert len({secret.ids for secret in made}) == 1


def test_load_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        SiteSecret.load(tmp_path / "secret")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o610, 0o604, 0o602, 0o601, 0o660, 0o666, 0o444, 0o777])
def test_a_file_that_others_may_touch_is_refused(secret_path: Path, mode: int) -> None:
    secret_path.chmod(mode)
    with pytest.raises(ConfigError, match=f"chmod 600 {secret_path}"):
        SiteSecret.load_or_create(secret_path)


def test_a_file_that_only_we_may_read_is_fine(secret_path: Path) -> None:
    secret_path.chmod(0o400)
    SiteSecret.load(secret_path)


@as_root
def test_a_file_of_somebody_else_is_refused(secret_path: Path) -> None:
    os.chown(secret_path, 12345, 0)
    with pytest.raises(ConfigError, match="belongs to user 12345"):
        SiteSecret.load(secret_path)


@as_root
@pytest.mark.parametrize("mode", [0o400, 0o440])
def test_a_systemd_credential_is_fine(secret_path: Path, mode: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(secret_path.parent))
    secret_path.chmod(mode)
    SiteSecret.load_or_create(secret_path)


@pytest.mark.parametrize("mode", [0o460, 0o444, 0o404])
def test_a_credential_that_anybody_may_touch_is_refused(
    secret_path: Path, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(secret_path.parent))
    secret_path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        SiteSecret.load(secret_path)


def test_a_directory_or_a_pipe_is_not_a_secret(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(ConfigError, match=r"not a regular file|Is a directory"):
            SiteSecret.load(path)


def test_a_link_to_nowhere_is_not_followed_to_make_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError):
        SiteSecret.load_or_create(tmp_path / "secret")
    assert not (tmp_path / "elsewhere").exists()


def test_a_path_through_a_file_is_a_wrong_path(secret_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Not a directory|exists"):
        SiteSecret.load_or_create(secret_path / "secret")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", ": holds no site secret"),
        ("\n", ":1: not a site secret"),
        (FIXED_LINE[:-4], ":1: not a site secret"),
        (f"{FIXED_LINE}\n{FIXED_LINE[4:]}\n", ":2: not a site secret"),
        (f"{FIXED_LINE[:-1]}", ":1: not a site secret"),
        (f"{FIXED_LINE} {FIXED_LINE} {FIXED_LINE}", ":1: not a site secret"),
        (f"00000000 {FIXED_LINE}", ":1: the id is another secret's"),
        (FIXED, ":1: not a site secret"),
        (b"\xff\xfe\0" * 20, ":1: not a site secret"),
        (b"A" * 100_000, ": over 65536 bytes"),
    ],
)
def test_a_file_with_anything_else_is_refused_without_showing_it(
    tmp_path: Path, content: str | bytes, fault: str
) -> None:
    path = written(tmp_path / "secret", content)
    with pytest.raises(ConfigError) as caught:
        SiteSecret.load(path)
    assert str(caught.value).startswith(f"{path}{fault}")
    assert FIXED_LINE[:8] not in str(caught.value)
    assert path.stat().st_size == len(content), "a file that is not understood must not be replaced"


@pytest.mark.parametrize("content", [FIXED_LINE, f"{FIXED_LINE}\n", f"1b876227  {FIXED_LINE}\r\n"])
def test_a_line_may_leave_the_id_and_the_line_end_out(tmp_path: Path, content: str) -> None:
    assert SiteSecret.load(written(tmp_path / "secret", content)).ids == SiteSecret(FIXED).ids


def test_what_an_earlier_relay_sealed_is_opened_for_ever() -> None:
    """Fixed values: if this fails, an upgrade would make every stored key unreadable."""
    assert SiteSecret(FIXED).ids == ("1b876227",)
    sealed = SealedOctets("1b876227", bytes.fromhex("070707070707070707070707586699e67c85302f1eed52835f6c5207309551"))
    assert SiteSecret(FIXED).open(sealed, b"context") == b"key"


@pytest.mark.parametrize("secrets", [(), (b"",), (FIXED[1:],), (FIXED, FIXED + b"0")])
def test_a_secret_has_32_octets(secrets: tuple[bytes, ...]) -> None:
    with pytest.raises(ValueError, match="32"):
        SiteSecret(*secrets)


def test_what_was_sealed_is_opened_in_the_same_context_only() -> None:
    secret = SiteSecret(FIXED)
    sealed = secret.seal(b"key", b"here")
    assert secret.open(sealed, b"here") == b"key"
    with pytest.raises(StoreUnavailable, match="changed"):
        secret.open(sealed, b"there")


def test_sealing_twice_gives_two_ciphertexts() -> None:
    assert SiteSecret(FIXED).seal(b"key", b"") != SiteSecret(FIXED).seal(b"key", b"")


def test_one_changed_bit_or_missing_octet_is_noticed() -> None:
    secret = SiteSecret(FIXED)
    sealed = secret.seal(b"key", b"")
    for position in range(len(sealed.data)):
        changed = bytearray(sealed.data)
        changed[position] ^= 1
        for data in (bytes(changed), sealed.data[:position]):
            with pytest.raises(StoreUnavailable):
                secret.open(SealedOctets(sealed.secret_id, data), b"")


def test_another_secret_opens_nothing() -> None:
    sealed = SiteSecret(FIXED).seal(b"key", b"")
    other = SiteSecret(bytes(32))
    with pytest.raises(StoreUnavailable, match="secret 1b876227, which is missing"):
        other.open(sealed, b"")
    with pytest.raises(StoreUnavailable, match="changed"):
        other.open(SealedOctets(other.ids[0], sealed.data), b"")


def test_secrets_and_what_they_seal_are_not_shown() -> None:
    secret = SiteSecret(FIXED)
    assert repr(secret) == str(secret) == "SiteSecret(1b876227)"
    assert repr(secret.seal(b"key", b"")) == "SealedOctets(secret_id='1b876227')"


def test_a_rotated_file_seals_under_the_new_secret_and_opens_under_both(secret_path: Path) -> None:
    old = SiteSecret.load(secret_path)
    new = SiteSecret.rotate(secret_path)
    assert new.ids == SiteSecret.load(secret_path).ids == (new.ids[0], *old.ids)
    assert new.open(old.seal(b"key", b""), b"") == b"key"
    with pytest.raises(StoreUnavailable, match="missing"):
        old.open(new.seal(b"key", b""), b"")


def test_rotation_leaves_nothing_but_the_file_for_us_alone(secret_path: Path) -> None:
    SiteSecret.rotate(secret_path)
    assert stat.S_IMODE(secret_path.stat().st_mode) == 0o600
    assert list(secret_path.parent.iterdir()) == [secret_path]


def test_rotations_at_once_lose_no_secret(secret_path: Path) -> None:
    first = SiteSecret.load(secret_path)
    with ThreadPoolExecutor(8) as threads:
        rotated = list(threads.map(SiteSecret.rotate, [secret_path] * 8))
    ids = SiteSecret.load(secret_path).ids
    assert len(ids) == 9
    assert ids[-1] == first.ids[0]
    assert all(set(secret.ids) <= set(ids) for secret in rotated)


@pytest.mark.parametrize("content", [None, "not a secret"])
def test_what_is_not_a_secret_is_not_rotated(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "secret"
    if content:
        written(path, content)
    with pytest.raises(ConfigError):
        SiteSecret.rotate(path)
    assert not content or path.read_text() == content
