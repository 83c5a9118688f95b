"""Starting and restarting the relay of a relay.toml on this machine: by its systemd unit, else by hand.
Standard: systemd.unit(5) (unit directories and their precedence), systemd.socket(5), sd_booted(3), proc(5).
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from relay.config import TCPAddress
from relay.errors import ConfigError
from relay.files import permissions, resolved
from relay.files.commands import as_user, command, one_after_the_other

DIRECTORIES = tuple(
    Path(place, "systemd/system") for place in ("/etc", "/run", "/usr/local/lib", "/usr/lib")
)  # fmt: skip
"""Unit directories, by descending precedence."""
BOOTED = Path("/run/systemd/system")
"""Exists if systemd runs this machine."""
DEFAULT_CONFIG = Path("/etc/qumail-relay/relay.toml")
"""The configuration of deploy/qumail-relay.service."""
INSTALL_UNIT = (
    "in the clone: install -m 644 deploy/qumail-relay.service deploy/qumail-relay.socket "
    "deploy/qumail-relay-waiting.service /etc/systemd/system/ && systemctl daemon-reload && "
    "systemctl enable --now qumail-relay"
)
"""Commands of deploy/INSTALL.md that install the unit."""
HOLD_PORTS = "qumail-relay setup --hold-ports --config"
"""Command that makes systemd hold the ports of a relay.toml."""
PACKAGE = Path("/usr/lib/qumail-relay")
"""The Python environment of the Debian package."""
INSTALLED = "ok installed"
"""What dpkg-query(1) says of a package that is installed completely, held or not."""
_STARTS = re.compile(r"^ExecStart=\S*qumail-relay\s+serve\b(.*)$", re.MULTILINE)
_USER = re.compile(r"^User=(\S+)$", re.MULTILINE)
_CONFIG = re.compile(r"--config[=\s]+(\S+)")
_LISTENS = re.compile(r"^ListenStream=(\S+)$", re.MULTILINE)
_TCP = {socket.AF_INET: Path("/proc/net/tcp"), socket.AF_INET6: Path("/proc/net/tcp6")}
_LISTENING = "0A"
ROOT = 0
_SERVICE = ".service"
_MASKED = {"qumail-relay.service": "ExecStart=qumail-relay serve"}
"""What is known of the relay's own unit where no file is left of it."""
_TIMEOUT_S = 20.0
_DPKG_TIMEOUT_S = 5.0


class Unit(NamedTuple):
    """A unit that starts a relay: name without `.service`, the configuration file, and the user.

    `before` is the configuration file without drop-ins.
    """

    name: str
    config: Path
    user: str
    before: Path

    @property
    def socket(self) -> str:
        """The socket unit by which systemd holds the relay's ports."""
        return f"{self.name}.socket"

    @property
    def addresses_file(self) -> Path:
        """The socket unit's drop-in with the addresses, written by setup."""
        return DIRECTORIES[0] / f"{self.socket}.d" / "addresses.conf"

    def to_hold(self) -> frozenset[str]:
        """The addresses that systemd should hold; none if the file is missing."""
        try:
            return frozenset(_LISTENS.findall(self.addresses_file.read_text()))
        except (OSError, ValueError):
            return frozenset()

    @property
    def holds(self) -> bool:
        """Whether root's sockets listen at all addresses of `to_hold`, which lists what systemd should hold."""
        return bool(self.to_hold()) and self.to_hold() <= listening_as(ROOT)

    @property
    def waits_for_start(self) -> bool:
        """Whether systemd holds the ports of a relay that does not serve: clients connect, and wait."""
        try:
            return self.holds and ("ActiveState", "active") not in shown(self.name, "ActiveState")
        except ConfigError:
            return False


def unit_of(config_file: Path) -> Unit | None:
    """The unit whose relay reads this file; None if there is none, or systemd does not run."""
    file = resolved(config_file)
    if not BOOTED.is_dir():
        return None
    return next((unit for unit in _units() if resolved(unit.config) == file), None)


def led_astray(config_file: Path) -> Unit | None:
    """The unit that a drop-in makes read another file than this one, or None."""
    file = resolved(config_file)
    if not BOOTED.is_dir():
        return None
    return next((each for each in _units() if resolved(each.before) == file != resolved(each.config)), None)


def how_to(action: Literal["start", "restart"], config_file: Path, user: str = "") -> str:
    """The command to type. `user` is the relay's user, if this process is root's and the relay is not."""
    if unit := unit_of(config_file):
        anew = action == "restart" and unit.to_hold() and not unit.holds
        return command("systemctl", action, unit.socket if anew else unit.name)
    user = user or _as_whom(config_file)
    first = "end it, then: " if action == "restart" else ""
    if user and BOOTED.is_dir() and resolved(config_file) == resolved(DEFAULT_CONFIG):
        return first + INSTALL_UNIT
    serve = ("qumail-relay", "serve", "--config", config_file)
    return f"{first}{as_user(user, *serve) if user else command(*serve)}"


def how_to_run_what_is_installed(config_file: Path) -> str:
    """The command after the installation of a release, whose unit may be in another directory."""
    restart = how_to("restart", config_file)
    return one_after_the_other("systemctl daemon-reload", restart) if unit_of(config_file) else restart


def shown(unit: str, *properties: str) -> list[tuple[str, str]]:
    """Properties from `systemctl show`; a name may occur more than once. Raises ConfigError."""
    said = systemctl("show", unit, *(f"--property={each}" for each in properties))
    return [(name, value) for name, _, value in (line.partition("=") for line in said.splitlines())]


def systemctl(*words: str) -> str:
    """The output. Raises ConfigError if the command fails or is missing."""
    program = shutil.which("systemctl")
    if program is None:
        raise ConfigError("systemctl: not found")
    try:
        done = subprocess.run(  # noqa: S603 - systemctl, with words of ours
            [program, *words], capture_output=True, text=True, timeout=_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{command('systemctl', *words)}: {error}") from error
    if done.returncode:
        raise ConfigError(f"{command('systemctl', *words)}: {done.stderr.strip()}")
    return done.stdout


def package_state() -> str:
    """The state of the Debian package, "" if dpkg does not know."""
    query = shutil.which("dpkg-query")
    if query is None:
        return ""
    words = [query, "-W", "-f", "${db:Status-Eflag} ${db:Status-Status}", "qumail-relay"]
    try:
        done = subprocess.run(  # noqa: S603 - dpkg-query, with words of ours
            words, capture_output=True, text=True, timeout=_DPKG_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return permissions.printable(done.stdout.strip()) if not done.returncode else ""


def listening_as(user: int) -> frozenset[str]:
    """The addresses at which a socket of this user listens, in systemd's notation."""
    found = set()
    for family, table in _TCP.items():
        with suppress(OSError, ValueError):
            for line in table.read_text().splitlines()[1:]:
                _, local, _, state, _, _, _, uid, *_ = line.split()
                address, _, port = local.partition(":")
                # In words of the processor's byte order (Linux, net/ipv4/tcp_ipv4.c).
                words = [int(address[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(address), 8)]
                if state == _LISTENING and int(uid) == user:
                    found.add(str(TCPAddress(socket.inet_ntop(family, b"".join(words)), int(port, 16))))
    return frozenset(found)


def _as_whom(config_file: Path) -> str:
    """This user, if root must become it first because relay.toml is root's; else ""."""
    try:
        return permissions.user() if config_file.stat().st_uid == 0 != os.geteuid() else ""
    except OSError:
        return ""


def _units() -> Iterator[Unit]:
    """Each unit that starts a relay."""
    for name, file in _first_of_each(f"*{_SERVICE}", DIRECTORIES).items():
        # Of a masked unit (a link to /dev/null) the file of the next directory tells what it would start.
        behind = (directory / file.name for directory in DIRECTORIES)
        texts = (each for each in map(_text, (file, *behind)) if each)
        text, places = next(texts, _MASKED.get(file.name, "")), [directory / f"{name}.d" for directory in DIRECTORIES]
        dropped = [_text(each) for _, each in sorted(_first_of_each("*.conf", places).items())]
        if _STARTS.search(text):
            config, user = _settings("\n".join((text, *dropped)))
            before, _ = _settings(text)
            yield Unit(name.removesuffix(_SERVICE), config, user, before)


def _settings(text: str) -> tuple[Path, str]:
    """relay.toml and the user; the last of several lines counts."""
    *_, starts = _STARTS.findall(text)
    config, users = _CONFIG.search(starts), _USER.findall(text)
    return Path(config[1]) if config else DEFAULT_CONFIG, users[-1] if users else "root"


def _first_of_each(pattern: str, directories: Iterable[Path]) -> dict[str, Path]:
    """The files by name; of two with one name, that of the first directory."""
    found: dict[str, Path] = {}
    for directory in directories:
        for file in sorted(directory.glob(pattern)):
            found.setdefault(file.name, file)
    return found


def _text(file: Path) -> str:
    """The text, "" if unreadable."""
    try:
        return file.read_text()
    except (OSError, ValueError):
        return ""
