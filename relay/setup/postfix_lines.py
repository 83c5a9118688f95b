"""A Postfix configuration as a table of settings, and the commands that turn one table into another.
Standard: postconf(1): main.cf by -n, -e and -X; services by -M and -MX; their own settings by -P and -PX.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from relay.postfix.settings import command, pairs

FILES = ("main.cf", "master.cf")
Key = tuple[str, str]
"""Service ("smtp/inet", "" for main.cf) and setting; "" stands for the service itself."""
Lines = dict[Key, str]
"""The values as written; for a service itself its fields, without its own settings."""


async def snapshot(directory: Path) -> Lines:
    """The settings of the configuration in this directory. Raises ConfigError."""
    look_old(directory)
    main, master, own = [(await command("postconf", directory, option))[0] for option in ("-n", "-M", "-P")]
    lines = {("", name): value for name, value in pairs(main) if name != "config_directory"}  # our argument
    for line in master.splitlines():
        fields = line.partition(" -o ")[0].split()
        lines["/".join(fields[:2]), ""] = " ".join(fields)
    for key, value in pairs(own):
        service, _, name = key.rpartition("/")
        lines[service, name] = value
    return lines


def look_old(directory: Path) -> None:
    """Dates a new copy back by a minute: Postfix rereads files younger than a second."""
    before = time.time() - 60
    for name in FILES:
        if (path := directory / name).exists():
            os.utime(path, (before, before))


async def lead_to(directory: Path, now: Lines, then: Lines) -> None:
    """Changes the configuration in this directory from `now` to `then`, and nothing else. Raises ConfigError."""
    gone = [service for service, setting in now if not setting and (service, "") not in then]
    to_set = [key for key, value in then.items() if now.get(key) != value]
    # A setting with a space can only be written with the whole line.
    anew = list(
        dict.fromkeys(service for service, name in to_set if service and (not name or " " in then[service, name]))
    )
    unset = [key for key in now if key not in then and key[0] not in (*gone, *anew)]
    own = [key for key in to_set if key[0] and key[0] not in anew]
    await _postconf(directory, "-MX", gone)
    await _postconf(directory, "-M", [f"{service}={_line(then, service)}" for service in anew])
    await _postconf(directory, "-X", [setting for service, setting in unset if not service])
    await _postconf(directory, "-PX", ["/".join(key) for key in unset if key[0]])
    await _postconf(directory, "-e", [f"{name} = {then['', name]}".rstrip() for of, name in to_set if not of])
    await _postconf(directory, "-P", [f"{'/'.join(key)}={then[key]}" for key in own])
    look_old(directory)


def _line(lines: Lines, service: str) -> str:
    """This service's line of master.cf."""
    own = [f"{name}={value}" for (of, name), value in lines.items() if of == service and name]
    return " -o ".join((lines[service, ""], *(f"{{{each}}}" if " " in each else each for each in own)))


async def _postconf(directory: Path, option: str, words: list[str]) -> None:
    if words:
        await command("postconf", directory, option, *words)
