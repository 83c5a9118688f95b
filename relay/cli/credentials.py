"""The relay's systemd credentials: site secret and passphrase of the private keys, encrypted for this machine.
Standard: systemd-creds(1), systemd.exec(5). For root; the files are /etc/credstore.encrypted/UNIT.NAME.

They are encrypted under a key of the machine's TPM2, if any, and the host key on the disk. No PCR is bound: a firmware
update would change it, and the relay would not start. A thief of the whole machine has the TPM2 as well.
"""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from relay.cli.as_relay import relay_rights, relays_user
from relay.cli.units import BOOTED, DIRECTORIES, INSTALL_UNIT, systemctl, unit_of
from relay.config import Config
from relay.errors import ConfigError
from relay.files.commands import command
from relay.files.credentials import PLACE, credential_name, is_there
from relay.files.rights import UnixUser
from relay.identity import any_encrypted
from relay.identity.files import read_secret
from relay.setup.files import Written, write_flushed
from relay.store import secret_file
from relay.store.secret import SiteSecret, fresh_secret, with_fresh

STORE = Path("/etc/credstore.encrypted")
SECRET, PASSPHRASE = "site.secret", "identity.passphrase"
_HEAD = "# The credentials of relay.toml, written by `qumail-relay setup`.\n[Service]\n"
_TIMEOUT_S = 60.0


def why_none(config_file: Path) -> str:
    """Why no credential can be made for the relay of this file; "" if it can."""
    if os.geteuid():
        return "root alone can make credentials of systemd"
    if not BOOTED.is_dir():
        return "systemd does not run this machine"
    if shutil.which("systemd-creds") is None:
        return "systemd-creds is missing, which systemd has since release 250"
    if unit_of(config_file) is None:
        return f"no unit starts the relay of {config_file}; {INSTALL_UNIT}"
    return ""


def has_tpm2() -> bool:
    """Whether systemd can use a TPM2 of this machine."""
    with suppress(ConfigError):
        _run("systemd-creds", "has-tpm2", "--quiet")
        return True
    return False


def tried_place(config_file: Path) -> Path:
    """As `place_for`, after a trial: in some containers units get no credentials. Raises ConfigError."""
    place, trial = place_for(config_file), os.urandom(16).hex()
    encrypted = b"".join(_encrypted("trial", trial.encode()).split()).decode()
    options = ("--quiet", "--wait", "--pipe", "--collect", f"--property=SetCredentialEncrypted=trial:{encrypted}")
    try:
        said = _run("systemd-run", *options, "sh", "-c", 'cat "$CREDENTIALS_DIRECTORY"/trial')
    except ConfigError:
        said = b""
    if said.decode("utf-8", "replace") != trial:
        raise ConfigError("no credentials: systemd gives none to its units on this machine")
    return place


def place_for(config_file: Path) -> Path:
    """The directory of this relay's credentials while it runs. Raises ConfigError."""
    if why := why_none(config_file):
        raise ConfigError(f"no credentials: {why}")
    unit = unit_of(config_file)
    assert unit is not None  # noqa: S101 - as why_none has said
    return PLACE / f"{unit.name}.service"


def provide(config: Config, config_file: Path, former: Config | None) -> list[Written]:
    """Makes the credentials of relay.toml that are missing, and has systemd load them at the relay's next start.

    The file that the `former` relay.toml names becomes the credential, so that its data still open. Credentials that an
    administrator provides otherwise are kept. Raises ConfigError, also if a credential with data under it is gone.
    """
    written = []
    for path in _named(config):
        if path.parent != place_for(config_file):
            raise ConfigError(f"{config_file}: {path} is a credential of another unit")
        file = _file(path)
        if not os.path.lexists(file) and not is_there(path):
            content = (
                _secret(config, former, file) if path == config.store.secret else _passphrase(config, former, file)
            )
            _write(path, content)
            written.append(Written(file, "made"))
        elif os.path.lexists(file):
            written.append(Written(file, "there already"))
    return written + load(config, config_file)


def load(config: Config, config_file: Path) -> list[Written]:
    """Has systemd load the credentials of relay.toml that exist on the disk. Raises ConfigError."""
    files, unit = _files(config), unit_of(config_file)
    if not files or unit is None:
        return []
    drop_in = DIRECTORIES[0] / f"{unit.name}.service.d" / "credentials.conf"
    text = _HEAD + "".join(f"LoadCredentialEncrypted={name}:{file}\n" for name, file in files.items())
    try:
        if drop_in.exists() and drop_in.read_text() == text:
            return [Written(drop_in, "there already")]
        drop_in.parent.mkdir(exist_ok=True)
        write_flushed(drop_in, text.encode(), 0o644)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{drop_in}: cannot be written: {error}") from error
    systemctl("daemon-reload")
    return [Written(drop_in, "made")]


def give(config: Config, user: UnixUser | None) -> None:
    """Gives this process and its children the relay's credentials until this process ends.

    The children run as `user`, None for root. Raises ConfigError.
    """
    if not (files := _files(config)):
        return
    unit, us = f"qumail-relay-command-{secrets.token_hex(8)}", f"--pid={os.getpid()}"
    options = ("--quiet", "--collect", "--service-type=exec", f"--uid={user.uid if user is not None else 0}")
    loads = [f"--property=LoadCredentialEncrypted={name}:{file}" for name, file in files.items()]
    _run("systemd-run", f"--unit={unit}", *options, *loads, "tail", us, "-f", "/dev/null")
    os.environ["CREDENTIALS_DIRECTORY"] = str(PLACE / f"{unit}.service")


def give_where_the_relay_has_none(config: Config) -> None:
    """Calls `give` for a command of root while the relay does not run; failures show later as missing credentials."""
    if any(not is_there(path) for path in _named(config)):
        with suppress(ConfigError):
            give(config, relays_user(config))


def rotate(path: Path) -> SiteSecret:
    """Puts a fresh secret before the others in this credential. Raises ConfigError."""
    content = with_fresh(_decrypted(path), _file(path))
    _write(path, content)
    return SiteSecret.parsed(content, _file(path))


def newest(path: Path) -> str:
    """The ID of the newest secret in the credential on the disk. Raises ConfigError."""
    return SiteSecret.parsed(_decrypted(path), _file(path)).ids[0]


def _named(config: Config) -> list[Path]:
    """The credentials that relay.toml names."""
    passphrase = config.identity.passphrase if config.identity is not None else None
    return [path for path in (config.store.secret, passphrase) if path is not None and credential_name(path)]


def _files(config: Config) -> dict[str, Path]:
    """The encrypted files that exist, by credential name."""
    return {path.name: _file(path) for path in _named(config) if os.path.lexists(_file(path))}


def _file(path: Path) -> Path:
    return STORE / f"{path.parent.name.removesuffix('.service')}.{path.name}"


def _secret(config: Config, former: Config | None, file: Path) -> bytes:
    plain = former.store.secret if former is not None else config.own_directory / SECRET
    database = config.store.database
    with relay_rights(config):
        if not credential_name(plain) and os.path.lexists(plain):
            SiteSecret.load(plain)
            return secret_file.read(plain)
        if config.has_served or (isinstance(database, Path) and os.path.lexists(database)):
            raise _gone(file, config.store.secret.name)
    return fresh_secret()


def _passphrase(config: Config, former: Config | None, file: Path) -> bytes:
    plain = former.identity.passphrase if former is not None and former.identity is not None else None
    with relay_rights(config):
        if plain is not None and not credential_name(plain):
            return read_secret(plain)
        if config.identity is not None and any_encrypted(config.identity.directory):
            raise _gone(file, PASSPHRASE)
    return base64.b64encode(os.urandom(32)) + b"\n"


def _gone(file: Path, name: str) -> ConfigError:
    back = f"put {name} back from its copy (deploy/OPERATING.md, Credentials)"
    return ConfigError(f"{file}: is missing, and there is something here that only it opens: {back}")


def _write(path: Path, content: bytes) -> None:
    encrypted, file = _encrypted(path.name, content), _file(path)
    try:
        STORE.mkdir(mode=0o700, exist_ok=True)
        write_flushed(file, encrypted, 0o600)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}") from error


def _encrypted(name: str, content: bytes) -> bytes:
    # systemd binds a PCR by default, and leaves out the TPM2 in a container.
    options = ("--with-key=host+tpm2", "--tpm2-pcrs=") if has_tpm2() else ()
    return _run("systemd-creds", "encrypt", *options, f"--name={name}", "-", "-", said=content)


def _decrypted(path: Path) -> bytes:
    return _run("systemd-creds", "decrypt", f"--name={path.name}", str(_file(path)), "-")


def _run(program: str, *words: str, said: bytes = b"") -> bytes:
    """The output. Raises ConfigError, without the input."""
    found = shutil.which(program)
    if found is None:
        raise ConfigError(f"{program}: not found")
    try:
        done = subprocess.run([found, *words], input=said, capture_output=True, timeout=_TIMEOUT_S)  # noqa: S603 - systemd's
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{command(program, *words)}: {type(error).__name__}") from error
    if done.returncode:
        why = done.stderr.decode("utf-8", "replace").strip()
        raise ConfigError(f"{command(program, *words)}: {why or f'exit status {done.returncode}'}")
    return done.stdout
