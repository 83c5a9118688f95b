"""`check` on the relay's addresses: whether this relay listens there, or another program does.
With --postfix, `check` on Postfix and its other filters, which relay/postfix reads.

Standard: proc(5) (/proc/net/tcp names the user of a socket); systemctl(1). Listeners are only connected to.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from shlex import quote

from relay import postfix
from relay.cli.as_relay import relays_user
from relay.cli.check_site import NOBODY, RESTART, State
from relay.cli.serving import servers_user, serves
from relay.cli.units import HOLD_PORTS, Unit, how_to, led_astray, shown, unit_of
from relay.config import Config, TCPAddress
from relay.entry import ListenerModule
from relay.entry.listening import Where, tcp_places
from relay.errors import ConfigError
from relay.files.accounts import user_name
from relay.files.commands import command, one_after_the_other
from relay.files.rights import as_owner_of
from relay.process import app
from relay.status import StatusModule

PATIENCE_S = 2.0
"""Timeout of a connection to a listener of this machine, in seconds."""
AT_RISK = "without systemd another user of this machine could take this port while the relay restarts"
GREETING_S = 10.0
"""Timeout of a greeting of the relay, in seconds."""
_GREETS = ("outgoing.listen", "outgoing.lmtp", "incoming.listen", "incoming.lmtp")
"""Listeners where the relay speaks first."""
_SHOWN = ("UnitFileState", "ActiveState", "SubState", "Result", "FreezerState", "ExecStart")
_PATH = re.compile(r"\bpath=(\S+)")
_TCP = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTENS = "0A"
USUAL_POSTFIX = Path("/etc/postfix")


async def listener_states(
    config: Config, config_file: Path, folders: Collection[ListenerModule | StatusModule]
) -> AsyncIterator[State]:
    """One line for each address that relay.toml names: whether somebody listens there, and whether it is this relay.

    Unless systemd holds the port, another user could take it during a restart.
    """
    serving = await asyncio.to_thread(serves, config)
    unit = unit_of(config_file)
    for folder in folders:
        for setting, where in folder.listens_on(config).items():
            listens = await listens_at(where)
            held = await _to_be_held(where, unit)
            if held and listens and serving is False and _users(where) == {0}:
                yield f"listener {setting}", f"{where}: systemd holds it, and {NOBODY}", ()
                continue
            problems = tuple(_problems(config, where, listens=listens, serves=serving))
            if not problems and serving and listens and setting in _GREETS and not await _greets(where):
                hangs = (
                    f"{where}: the relay serves, and does not answer within {GREETING_S:.0f} s: it hangs or is frozen"
                )
                problems = (f"{hangs}: {how_to('restart', config_file)}",)
            at_risk = held is False or (bool(held) and listens and 0 not in _users(where))
            if at_risk and unit is not None and not problems:
                problem = (
                    f"{where}: another user of this machine could take this port while the relay restarts: "
                    f"as root: {HOLD_PORTS} {quote(str(config_file))}"
                )
                problems = (problem,)
            listening = f"listens; {AT_RISK}" if at_risk else "listens"
            yield f"listener {setting}", f"{where}: {listening if listens else NOBODY}", problems


async def _to_be_held(where: Where, unit: Unit | None) -> bool | None:
    """Whether systemd should hold all of this address; None for ports that nobody can take or that are not ours."""
    if isinstance(where, Path) or not where.port:
        return None
    if unit is None:
        return False
    try:
        return set(map(str, await tcp_places(where))) <= unit.to_hold()
    except OSError:
        return False


def _problems(config: Config, where: Where, *, listens: bool, serves: bool | None) -> Iterator[str]:
    """`serves`: whether a relay of this site serves; None if this machine cannot tell."""
    users = _users(where) if listens else set()
    whose = f" of user {', '.join(sorted(map(user_name, users)))}" if users else ""
    if listens and serves is False:
        end = "end that program, or choose another port"
        if 0 in users:
            held = command("systemctl", "list-sockets", "--all")
            end = f"{held} says whether systemd holds it for the relay: then mend the relay's unit; else {end}"
        yield (
            f"{where}: a program{whose} listens there, and it is no relay of this site, for none serves from its "
            f"database: the relay cannot start; {end}"
        )
    elif users and not users & {0, *_relays_users(config)}:
        yield f"{where}: a program{whose} listens there, who is not the relay's user: choose another port"
    elif serves and not listens and isinstance(where, TCPAddress) and where.port:
        yield f"{where}: the relay serves, and does not listen there: {RESTART}"


async def listens_at(where: Where, *, unknown: bool = False) -> bool:
    """Whether a program listens there; `unknown` after a timeout or if we may not connect."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            _, writer = await _connected(where)
            writer.close()
    except (PermissionError, TimeoutError):
        return unknown
    except OSError:
        return False
    return True


async def _connected(where: Where) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if isinstance(where, Path):
        return await asyncio.open_unix_connection(str(where))
    return await asyncio.open_connection(where.host, where.port)


async def _greets(where: Where) -> bool:
    """Whether the listener sends anything to a client that waits."""
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(GREETING_S):
            reader, writer = await _connected(where)
            try:
                return bool(await reader.read(1))
            finally:
                writer.close()
    return False


def _users(where: Where) -> set[int]:
    """The users whose programs listen at this TCP port, as far as the system tells."""
    users: set[int] = set()
    if isinstance(where, Path):
        return users
    for table in _TCP:
        with suppress(OSError, ValueError):
            for line in table.read_text().splitlines()[1:]:
                _, local, _, state, _, _, _, user, *_ = line.split()
                if state == _LISTENS and int(local.rpartition(":")[2], 16) == where.port:
                    users.add(int(user))
    return users


def _relays_users(config: Config) -> set[int]:
    """The serving relay's user. Without one: the owners of its files, and this process's user."""
    if (user := servers_user(config)) is not None:
        return {user}
    users = {os.geteuid()}
    for path in config.own_paths:
        with suppress(OSError):
            users.add(path.stat().st_uid)
    return users


def unit_states(config_file: Path) -> Iterator[State]:
    """Reports whether the relay's unit, if any, starts at boot, runs, and is not frozen."""
    if (astray := led_astray(config_file)) is not None:
        problem = (
            f"a drop-in has it serve with {astray.config}, and what is checked here is another file: see "
            f"{command('systemctl', 'cat', astray.name)}; {command('qumail-relay', 'check', '--config', astray.config)}"
        )
        yield f"unit {astray.name}", "", (problem,)
    found = unit_of(config_file)
    if found is None:
        return
    name = found.name
    try:
        unit = dict(shown(name, *_SHOWN))
    except ConfigError:
        return
    starts = unit.get("UnitFileState")
    problem = ""
    if starts in ("disabled", "masked", "masked-runtime"):
        enable = command("systemctl", "enable", "--now", name)
        unmask = [] if starts == "disabled" else [command("systemctl", "unmask", name)]
        problem = (
            f"it is {starts}: after the next boot no relay serves, and any user can take its ports and the mail that "
            f"Postfix hands over: as root: {one_after_the_other(*unmask, enable)}"
        )
    elif (program := _program(unit.get("ExecStart", ""))) is not None and not os.access(program, os.X_OK):
        problem = f"its program {program} is missing or cannot be run: install the release again"
    elif unit.get("FreezerState", "running") != "running":
        thaw = command("systemctl", "thaw", name)
        problem = f"it is {unit['FreezerState']}: no mail goes, and the relay cannot say so itself: as root: {thaw}"
    elif starts != "enabled":
        return
    elif unit.get("ActiveState") in ("inactive", "failed") or unit.get("SubState") == "auto-restart":
        state = f"{unit.get('ActiveState')}, {unit.get('SubState')}, {unit.get('Result')}"
        look = command("journalctl", "-u", name, "-n", "20")
        problem = f"it is enabled and does not run ({state}): see {look}; {how_to('start', config_file)}"
    yield f"unit {name}", "" if problem else "runs", (problem,) if problem else ()


def _program(starts: str) -> Path | None:
    """The program in systemd's ExecStart property, `{ path=/opt/... ; argv[]=... }`."""
    found = _PATH.search(starts)
    return Path(found[1]) if found else None


async def postfix_states(config: Config, directory: Path) -> AsyncIterator[State]:
    """One line for the configuration, and one for each filter of another program that does not answer.

    Postfix's files may be readable only by root, so root reads them as their owner, and none of the relay's.
    """
    neighbours: list[postfix.Neighbour] = []
    try:
        with as_owner_of(directory):
            judged = await postfix.judge_all(directory, config)
            former = await postfix.by_former_settings(judged.flow)
        problems, neighbours = tuple(map(str, (*judged.faults, *former))), judged.neighbours
    except ConfigError as error:
        problems = tuple(error.problems)
    yield "Postfix", str(directory), problems
    for each in neighbours:
        if not await listens_at(each.address, unknown=True):
            problem = f"{each.where}: nobody listens at {each.address}: {each.until}; start what belongs there"
            yield f"filter {each.address}", "", (f"{problem}, or take it out",)


async def handed_states(config: Config, config_file: Path, directory: Path) -> AsyncIterator[State]:
    """One line for each address with a fault, or to which Postfix hands mail while nobody listens."""
    handed_to = await _handed_to(config, directory)
    try:
        folders = [*app.listeners(config).values()]
    except ConfigError as error:
        yield "listeners", "", tuple(error.problems)
        return
    async for title, detail, problems in listener_states(config, config_file, folders):
        unheard = detail.endswith(NOBODY)
        ours = next((where for where in handed_to if unheard and detail.startswith(f"{where}: ")), None)
        if problems:
            yield title, detail, problems
        elif ours is not None:
            yield title, detail, (_unheard(ours, config, config_file),)


async def unnamed_postfix(config: Config) -> State:
    """Without a Postfix in relay.toml: whether this host's Postfix hands mail to the relay nevertheless."""
    if not await _handed_to(config, USUAL_POSTFIX):
        return "Postfix", "none is watched: relay.toml names none ([postfix] directory)", ()
    problem = (
        f"{USUAL_POSTFIX} hands mail to this relay, and relay.toml does not name it: nobody watches whether all mail "
        "goes through the relay; run `qumail-relay setup` again, which writes it into relay.toml, or write [postfix] "
        f'with directory = "{USUAL_POSTFIX}" there, and restart the relay'
    )
    return "Postfix", str(USUAL_POSTFIX), (problem,)


async def _handed_to(config: Config, directory: Path) -> set[Where]:
    """The relay's addresses to which this Postfix hands mail; none if it cannot be read."""
    with suppress(ConfigError), as_owner_of(directory):
        return {*await postfix.handed_to(directory, config)}
    return set()


def _unheard(where: Where, config: Config, config_file: Path) -> str:
    try:
        user = relays_user(config)
    except ConfigError:  # reported by check without --postfix
        user = None
    start = how_to("start", config_file, user.name if user is not None else "")
    return f"{where}: {NOBODY}, and Postfix hands mail to it, which waits until the relay serves; start it: {start}"
