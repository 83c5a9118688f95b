"""Reads a Postfix configuration with postconf(1) into one immutable value; names the place of a fault.
Standard: postconf(1), postconf(5), master(5): a service's own `-o name=value` overrides main.cf.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relay.errors import ConfigError
from relay.files import commands

TIMEOUT_S = 30.0
"""Timeout of postconf, in seconds: a directory on a dead network drive must not block us."""
ADMIN_PATHS = ("/usr/sbin", "/usr/local/sbin", "/sbin")
"""Directories of Postfix's commands, for users without them in PATH."""
_NO_SETTING = re.compile(r"\s-o\s+[^={\s][^=\s]*(?=\s|$)")
"""An option without a value: postconf splits `-oname=value` after the second letter."""
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@dataclass(frozen=True, slots=True)
class PostfixFault:
    """A fault: its place in main.cf or master.cf, what is wrong, and the remedy.

    `code` never changes; scripts and the tests' table of bad configurations use it.
    """

    code: str
    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.remedy} [{self.code}]"


@dataclass(frozen=True, slots=True)
class MasterService:
    """A line of master.cf; `command` is the program's name, `process_limit` as written ("-": default).

    `misread`: postconf(1) and the program read an option differently, such as `-ocontent_filter=`.
    """

    name: str
    type: str
    command: str
    process_limit: str
    overrides: Mapping[str, str] = field(default_factory=dict)
    misread: bool = False

    @property
    def key(self) -> str:
        """The name for postconf: `smtp/inet`."""
        return f"{self.name}/{self.type}"


@dataclass(frozen=True, slots=True)
class PostfixSettings:
    """A configuration: main.cf with all defaults, master.cf, and postconf's warnings.

    `written` are the lines of main.cf that differ from the `defaults`; `asked` are the settings that a rule has read.
    """

    directory: Path
    main: Mapping[str, str]
    services: tuple[MasterService, ...]
    warnings: tuple[str, ...] = ()
    written: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, str] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)

    def value(self, name: str, service: MasterService | None = None) -> str:
        """The value for this service, "" if empty or unknown."""
        self.asked.add(name)
        if service is not None and name in service.overrides:
            return service.overrides[name]
        return self.main.get(name, "")

    def of(self, name: str, service: MasterService | None = None) -> Setting:
        """The setting of this service, with its place."""
        return Setting(self, name, service)

    def service(self, name: str, type_: str) -> MasterService | None:
        """The line of master.cf with this name and type."""
        return next((each for each in self.services if (each.name, each.type) == (name, type_)), None)


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of a service of master.cf, or of main.cf."""

    settings: PostfixSettings
    name: str
    service: MasterService | None = None

    @property
    def value(self) -> str:
        """The value, "" if empty or unknown."""
        return self.settings.value(self.name, self.service)

    @property
    def words(self) -> list[str]:
        """The words of a list, in lower case."""
        return [word for word in re.split(r"[,\s]+", self.value.lower()) if word]

    @property
    def number(self) -> int:
        """The value as a number; 0 if it is none."""
        return int(self.value) if self.value.isascii() and self.value.isdigit() else 0

    @property
    def seconds(self) -> float:
        """The value of a time ("600s", "1h"), in seconds."""
        match = re.fullmatch(r"(\d+)([smhdw]?)", self.value)
        return int(match[1]) * _UNITS[match[2]] if match else 0

    @property
    def where(self) -> str:
        """Its place, for people."""
        if self.service is not None and self.name in self.service.overrides:
            return f"master.cf {self.service.key}: {self.name}={self.value}"
        return f"main.cf: {self.name} = {self.settings.main.get(self.name, '')}"

    def to(self, value: object) -> str:
        """The command that sets this value."""
        if self.service is not None:
            return commands.command("postconf", "-P", f"{self.service.key}/{self.name}={value}")
        return commands.command("postconf", "-e", f"{self.name} = {value}".rstrip())

    def fault(self, code: str, text: str, remedy: str) -> PostfixFault:
        """Returns a fault of this setting."""
        return PostfixFault(code, self.where, text, remedy)


def split_list(value: str) -> list[str]:
    """The items of a list: split at commas and spaces outside braces."""
    items, depth, item = [], 0, ""
    for character in value + " ":
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0 and character in ", \t":
            items += [item] if item else []
            item = ""
        else:
            item += character
    return items


async def read_settings(directory: Path) -> PostfixSettings:
    """Reads the configuration in this directory. Raises ConfigError if Postfix is missing or cannot read it."""
    outputs = [await command("postconf", directory, option) for option in ("-x", "-Fx", "-Px", "-n", "-d")]
    main, fields, overrides, written, defaults = (output for output, _ in outputs)
    usual = dict(pairs(defaults))
    warned = [
        line.partition("warning: ")[2] for _, said in outputs for line in said.splitlines() if "warning: " in line
    ]
    return PostfixSettings(
        directory,
        dict(pairs(main)),
        tuple(_services(fields, overrides)),
        tuple(dict.fromkeys(warned)),
        {name: value for name, value in pairs(written) if usual.get(name) != value},
        usual,
    )


async def command(name: str, directory: Path | None, *words: str, said: str = "") -> tuple[str, str]:
    """Runs one of Postfix's commands, or, without `directory`, any command; returns standard output and standard error.

    `said` is the standard input. Raises ConfigError if the command is missing, fails, or does not end.
    """
    path = os.pathsep.join((os.environ.get("PATH", ""), *ADMIN_PATHS))
    program = shutil.which(name, path=path)
    if program is None:
        raise ConfigError(f"{name}: not found; install Postfix on this host (Debian: apt-get install postfix)")
    where = () if directory is None else ("-c", str(directory))
    # With different real and effective users Postfix acts as set-uid, and reads /etc/postfix whatever -c says.
    wholly: dict[str, Any] = {"user": os.geteuid(), "group": os.getegid()} if os.getuid() != os.geteuid() else {}
    process = await asyncio.create_subprocess_exec(
        program, *where, *words,
        stdin=asyncio.subprocess.PIPE if said else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, **wholly,
    )  # fmt: skip
    try:
        async with asyncio.timeout(TIMEOUT_S):
            out, err = await process.communicate(said.encode() or None)
    except TimeoutError:
        raise ConfigError(f"{' '.join((name, *where, *words))}: no end after {TIMEOUT_S:.0f} s") from None
    finally:  # also if the caller is cancelled
        if process.returncode is None:
            process.kill()
            await process.wait()
    said = err.decode("utf-8", "replace").strip()
    if process.returncode != 0:
        raise ConfigError(f"{directory or name}: {said or f'{name} failed'}")
    return out.decode("utf-8", "replace"), said


def pairs(output: str) -> list[tuple[str, str]]:
    """The names and values in postconf's lines `name = value`."""
    lines = (line.partition(" =") for line in output.splitlines() if " =" in line)
    return [(name, value.strip()) for name, _, value in lines]


def _services(fields: str, overrides: str) -> list[MasterService]:
    """The services from `postconf -F` and `postconf -P`, whose names are service/type/field."""
    services: dict[tuple[str, str], dict[str, str]] = {}
    own: dict[tuple[str, str], dict[str, str]] = {}
    for output, into in ((fields, services), (overrides, own)):
        for key, value in pairs(output):
            name, type_, parameter = key.rsplit("/", 2)
            into.setdefault((name, type_), {})[parameter] = value
    return [
        MasterService(
            name,
            type_,
            Path(each["command"].split()[0]).name,
            each["process_limit"],
            own.get((name, type_), {}),
            misread=_NO_SETTING.search(each["command"]) is not None,
        )
        for (name, type_), each in services.items()
    ]
