"""A Postfix configuration as a table of what it sets, and the commands that lead from one such table to another.
Standard: postconf(1): main.cf by -n, -e and -X; services by -M and -MX; their own settings by -P and -PX.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from relay.postfix.settings import command, pairs

FILES = ("main.cf", "master.cf")
Key = tuple[str, str]
"""Service ("smtp/inet", "" for main.cf) and setting; a service itself is the setting ""."""
Lines = dict[Key, str]
"""What is set, as it stands there; of a service itself the fields, without its own settings."""


async def snapshot(directory: Path) -> Lines:
    """What the configuration in this directory sets. Raises ConfigError."""
    look_old(directory)
    main, master, own = [(await command("postconf", directory, option))[0] for option in ("-n", "-M", "-P")]
    lines = {("", name): value for name, value in pairs(main) if name != "config_directory"}  # that is where we look
    for line in master.splitlines():
        fields = line.partition(" -o ")[0].split()
        lines["/".join(fields[:2]), ""] = " ".join(fields)
    for key, value in pairs(own):
        service, _, name = key.rpartition("/")
        lines[service, name] = value
    return lines


def look_old(directory: Path) -> None:
    """Has a copy that was just written look a minute old: Postfix reads a younger file again and again for a second."""
    before = time.time() - 60
    for name in FILES:
        if (path := directory / name).exists():
            os.utime(path, (before, before))


async def lead_to(directory: Path, now: Lines, then: Lines) -> None:
    """Changes the configuration in this directory from `now` to `then`, and nothing else of it. Raises ConfigError."""
    gone = [service for service, setting in now if not setting and (service, "") not in then]
    to_set = [key for key, value in then.items() if now.get(key) != value]
    # A setting with a blank can be written only with the whole line.
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
    """The line of master.cf for this service."""
    own = [f"{name}={value}" for (of, name), value in lines.items() if of == service and name]
    return " -o ".join((lines[service, ""], *(f"{{{each}}}" if " " in each else each for each in own)))


async def _postconf(directory: Path, option: str, words: list[str]) -> None:
    if words:
        await command("postconf", directory, option, *words)
