"""Makes systemd hold the TCP ports of relay.toml, so that no other program can take one. For root.
Standard: systemd.socket(5), which knows no host names; they are looked up as the relay does.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path

from relay.cli.units import BOOTED, DIRECTORIES, INSTALL_UNIT, Unit, shown, systemctl, unit_of
from relay.config import Config, TCPAddress
from relay.entry.listening import tcp_places
from relay.errors import ConfigError
from relay.files.commands import command, one_after_the_other
from relay.process import app
from relay.setup.files import write_flushed

ATTEMPTS, PAUSE_S = 20, 0.5
"""How often the socket unit is restarted, and the pause in between, in seconds."""
_HEAD = "# The addresses of relay.toml, written by `qumail-relay setup --hold-ports`.\n[Socket]\n"


def socket_unit_of(config_file: Path) -> Unit | None:
    """The unit whose relay reads this file, if a socket unit passes ports to it. For root."""
    unit = unit_of(config_file)
    if unit is None or not any((directory / unit.socket).exists() for directory in DIRECTORIES):
        return None
    return unit if unit.socket in dict(shown(unit.name, "TriggeredBy")).get("TriggeredBy", "").split() else None


def hold_ports(config: Config, config_file: Path) -> str:
    """Makes systemd hold the addresses from now on; returns the message to show.

    A running relay must be restarted for that, which is left to the administrator. Raises ConfigError.
    """
    if not BOOTED.is_dir():
        return "systemd does not run this machine, so the relay binds its ports itself"
    unit = socket_unit_of(config_file)
    if unit is None:
        raise ConfigError(f"no unit with a socket unit starts the relay of {config_file} here; {INSTALL_UNIT}")
    addresses = frozenset(places(config))
    if not addresses:
        return _none_to_hold(unit)
    text = ", ".join(sorted(addresses))
    if unit.to_hold() != addresses or not unit.holds:
        _write(unit, addresses)
    if unit.holds:
        return f"{text}: held by systemd ({unit.socket})"
    if dict(shown(unit.name, "ActiveState"))["ActiveState"] in ("active", "reloading"):
        restart = command("systemctl", "restart", unit.socket)
        return f"{unit.addresses_file}: written; systemd holds the ports after: {restart}"
    _restart(unit)
    return f"{text}: held by systemd from now on ({unit.socket})"


def _restart(unit: Unit) -> None:
    """Raises ConfigError.

    While a relay begins, its socket unit cannot. One that fails for want of the sockets begins again every few seconds.
    """
    for _ in range(ATTEMPTS - 1):
        with suppress(ConfigError):
            systemctl("restart", unit.socket)
            return
        time.sleep(PAUSE_S)
    systemctl("restart", unit.socket)


def _none_to_hold(unit: Unit) -> str:
    """Raises ConfigError if systemd holds ports that relay.toml does not name."""
    if unit.to_hold():
        remedy = one_after_the_other(
            command("systemctl", "disable", "--now", unit.socket),
            command("rm", unit.addresses_file),
            command("systemctl", "daemon-reload"),
            command("systemctl", "start", unit.name),
        )
        raise ConfigError(f"relay.toml names no TCP port, and systemd holds some: {remedy}")
    return "relay.toml names no TCP port, so there is none to hold"


def hold_ports_by_default(config: Config, config_file: Path) -> str:
    """Calls hold_ports if possible; else returns "", and `check` reports it. Raises ConfigError."""
    if os.geteuid():
        return ""
    return hold_ports(config, config_file) if socket_unit_of(config_file) is not None else ""


def places(config: Config) -> list[str]:
    """The addresses of all settings with a TCP port, in systemd's notation. Raises ConfigError."""
    found: list[str] = []
    for setting, where in app.listening_addresses(config).items():
        if isinstance(where, TCPAddress):
            if not where.port:
                raise ConfigError(f"{setting}: systemd cannot hold port 0: choose one")
            try:
                found += map(str, asyncio.run(tcp_places(where)))
            except OSError as error:
                raise ConfigError(f"{setting}: {where}: {error.strerror}") from error
    return found


def _write(unit: Unit, addresses: frozenset[str]) -> None:
    """Raises ConfigError."""
    text = _HEAD + "".join(f"ListenStream={each}\n" for each in sorted(addresses))
    try:
        unit.addresses_file.parent.mkdir(exist_ok=True)
        unit.addresses_file.parent.chmod(0o755)  # `check` reads it as the relay's user
        write_flushed(unit.addresses_file, text.encode(), 0o644)
    except OSError as error:
        raise ConfigError(f"{unit.addresses_file}: cannot be written: {error.strerror}") from error
    systemctl("daemon-reload")
    systemctl("enable", unit.socket)
