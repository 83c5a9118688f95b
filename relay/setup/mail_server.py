"""Joins the relay to a Postfix as the files of deploy/postfix say, and undoes it.
All changes are tried on a copy first; the former files are backed up, and later edits are not lost.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import re
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import relay
from relay.config import Config, TCPAddress
from relay.config.ports import INCOMING, OUTGOING
from relay.errors import ConfigError
from relay.files import resolved
from relay.files.rights import as_owner_of, open_named
from relay.postfix import canary, judge_all
from relay.postfix.flow import is_loopback, mail_flow, service_address
from relay.postfix.settings import ADMIN_PATHS, TIMEOUT_S, PostfixFault, read_settings
from relay.setup.backups import BACKUP, backups_of, last_backup, new_backup, this_machine
from relay.setup.files import write_flushed
from relay.setup.former import LOG_NAMES, as_before, without_stale
from relay.setup.postfix_lines import FILES, lead_to, look_old, snapshot
from relay.setup.scanners import before_smarthost, behind_scanners, between_milters
from relay.setup.still_queued import raise_if_queued

DELAY = ("", "delay_warning_time")
"""An administrator's value is kept."""
_SHIPPED = Path(relay.__file__).parent / "postfix" / "fragments"
_SOURCE = Path(relay.__file__).parents[1] / "deploy" / "postfix"
_SUBMISSION = re.compile(r"submissions?|smtps|(.*:)?(587|465)")


@dataclass(frozen=True, slots=True)
class PostfixChange:
    """A change to the Postfix configured in `directory`: the files before and after, by name.

    `faults` are those that `check --postfix` finds in the result.
    """

    directory: Path
    before: dict[str, bytes]
    after: dict[str, bytes]
    faults: tuple[PostfixFault, ...]

    @property
    def differs(self) -> bool:
        """Whether anything would change."""
        return self.before != self.after

    def diff(self) -> str:
        """The change in the format of diff -u."""
        return "".join(_diff(self.directory / name, self.before[name], self.after[name]) for name in FILES)


async def planned_change(
    directory: Path, config: Config, *, beside: Path | None = None, service: str | None = None
) -> PostfixChange:
    """The change that deploy/postfix requires; `service` is where mail from outside arrives, detected if unambiguous.

    Setup's changes for another integration, known from the backups in `beside`, are reverted. Nothing is written.
    Raises ConfigError, and StillQueued if queued mail needs, or may need, a filter that the change removes.
    """
    fragments = _fragments(config)
    before = _read(directory)
    with tempfile.TemporaryDirectory(prefix="qumail-relay-postfix-") as work:
        copy, target = Path(work) / "etc", Path(work) / "wanted"
        for each in (copy, target):
            each.mkdir()
            for name, content in before.items():
                (each / name).write_bytes(content)
            look_old(each)
        now = await snapshot(copy)
        # Applied to a copy of Postfix without setup's changes; then only the difference is written.
        by_filter = not {"outgoing-lmtp", "incoming-lmtp"}.isdisjoint(fragments)
        backups = backups_of(directory, beside) if beside is not None else []
        lines = await as_before(now, backups)
        lines = without_stale(lines, await read_settings(copy), config, by_filter=by_filter)
        await lead_to(target, now, lines)
        had = mail_flow(await read_settings(target), config)
        if "smarthost" in fragments:
            before_smarthost(config, lines)
        if "incoming-lmtp" in fragments:
            service = service or await _arrival(target)
        elif service is None:
            with suppress(ConfigError):  # only for inspection, so ambiguity does not matter
                service = await _arrival(target)
        for fragment in fragments:
            await _run(_prepared(fragment, Path(work), _ports(config), service or "smtp/inet"), target)
        then = await snapshot(target)
        if "milter" in fragments:
            then = between_milters(had, lines, then, service or "smtp/inet")
        elif by_filter:
            then = behind_scanners(had, lines, then, service or "smtp/inet")
        if lines.get(DELAY, "").strip("0hmsdw"):
            then[DELAY] = lines[DELAY]
        if config.incoming is not None:
            then["", canary.ALIASES] = canary.with_alias(then.get(("", canary.ALIASES), ""), config)
        await lead_to(copy, now, then)
        after = _read(copy)
        # Tables without a directory in main.cf are looked up beside it.
        faults = (await judge_all(copy, config)).faults
        then_in_force = await read_settings(copy)
    if before != after:
        await raise_if_queued(directory, then_in_force, config)
    return PostfixChange(directory, before, after, faults)


def apply(change: PostfixChange, beside: Path) -> Path:
    """Applies the change, and returns the directory of its backup, inside `beside`.

    Raises ConfigError, also if somebody has edited the files since.
    """
    if _read(change.directory) != change.before:
        raise ConfigError(f"{change.directory}: was edited meanwhile; run this again")
    try:
        backup = new_backup(beside / BACKUP)
        for when, contents in (("before", change.before), ("after", change.after)):
            (backup / when).mkdir(mode=0o700)
            for name, content in contents.items():
                write_flushed(backup / when / name, content, 0o600)
        # Written last: `undo` finds a complete backup, or none.
        write_flushed(backup / "directory", f"{change.directory.absolute()}\n{this_machine()}\n".encode(), 0o600)
    except OSError as error:
        raise ConfigError(f"{error.filename or beside}: {error.strerror}; nothing was changed") from error
    try:
        _put_back(change.directory, change.after)
    except OSError as error:
        cause = f"{error.filename or change.directory}: {error.strerror}"
        raise ConfigError(f"{cause}; perhaps half of it was changed: `setup --undo` puts all back") from error
    return backup


def undo(beside: Path) -> Path:
    """Restores the files from before the last `apply`, and returns that Postfix's directory.

    Raises ConfigError if there is none, or if the files were edited since: that edit would be lost.
    """
    backup = last_backup(beside)
    try:
        directory = Path((backup / "directory").read_text().splitlines()[0])
        before, after = _read(backup / "before"), _read(backup / "after")
        now = _read(directory)
        if edited := [name for name in FILES if now[name] not in (before[name], after[name])]:
            said = "".join(_diff(directory / name, after[name], now[name]) for name in edited)
            lost = (
                f"{directory}: edited since setup has changed it, so nothing was undone. Take this edit back, put "
                f"the files of {backup / 'before'} there by hand, or take the relay's content filters out, and those "
                "alone (deploy/SCANNERS.md, at its end):"
            )
            raise ConfigError([lost, *said.rstrip().split("\n")])
        _put_back(directory, before)
        (backup / "directory").unlink()  # first: an incomplete backup counts as none
        shutil.rmtree(backup)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from error
    return directory


def _fragments(config: Config) -> tuple[str, ...]:
    """The directories of deploy/postfix that match relay.toml."""
    outgoing, incoming = config.outgoing, config.incoming
    if any(direction is not None and direction.milter for direction in (outgoing, incoming)):
        return ("milter",)
    by_lmtp = {"outgoing-lmtp": outgoing, "incoming-lmtp": incoming}
    names = tuple(name for name, direction in by_lmtp.items() if direction is not None and direction.lmtp)
    if not names and outgoing is not None and outgoing.listen:
        return ("smarthost",)
    if not names:
        raise ConfigError("relay.toml has no address for Postfix (lmtp, milter or listen of [outgoing] and [incoming])")
    return names


def _ports(config: Config) -> dict[str, str]:
    """This site's port for each port of deploy/postfix."""
    found: dict[str, str] = {}
    for direction, ports in ((config.outgoing, OUTGOING), (config.incoming, INCOMING)):
        if direction is not None:
            hop = getattr(direction.next_hop[0], "address", None)
            for port, address in zip(ports, (direction.lmtp, direction.listen, hop, direction.milter), strict=True):
                if isinstance(address, TCPAddress):
                    found[str(port)] = str(address.port)
    return found


async def _arrival(directory: Path) -> str:
    """The service at which mail from outside arrives. Raises ConfigError if several could be."""
    services = [each for each in (await read_settings(directory)).services if each.command == "smtpd"]
    screened = [each.key for each in services if each.type == "pass"]
    arriving = [
        each.key
        for each in services
        if each.type == "inet"
        and not _SUBMISSION.fullmatch(each.name)
        and "submission" not in each.overrides.get("syslog_name", "")
        and each.overrides.get("syslog_name") not in LOG_NAMES
        and not (is_loopback((service_address(each) or ("", 0))[0]) and "content_filter" in each.overrides)
    ]
    found = screened or (["smtp/inet"] if "smtp/inet" in arriving else arriving)
    if len(found) != 1:
        several = ", ".join(found) or "none"
        raise ConfigError(f"master.cf: at which service does mail from outside arrive ({several})? --postfix-service")
    return found[0]


def _prepared(fragment: str, work: Path, ports: dict[str, str], service: str) -> Path:
    """A copy of the fragment with this site's ports and service."""
    source, copy = (_SHIPPED if _SHIPPED.is_dir() else _SOURCE) / fragment, work / fragment
    if not source.is_dir():
        raise ConfigError(f"{source}: missing; this installation is not whole")
    copy.mkdir()
    for file in source.iterdir():
        text = re.sub(r"\b\d{5}\b", lambda match: ports.get(match[0], match[0]), file.read_text())
        (copy / file.name).write_text(re.sub(r"\bsmtp/inet\b", lambda _: service, text))
    look_old(copy)
    return copy


async def _run(fragment: Path, configuration: Path) -> None:
    """Runs the commands in the comments of the fragment's main.cf on this configuration. Raises ConfigError."""
    commands = "\n".join(re.findall(r"^#     (.*)$", (fragment / "main.cf").read_text(), re.MULTILINE))
    path = os.pathsep.join((os.environ.get("PATH", ""), *ADMIN_PATHS))
    process = await asyncio.create_subprocess_exec(
        "/bin/sh", "-ec", commands, cwd=fragment, env={**os.environ, "PATH": path, "MAIL_CONFIG": str(configuration)},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(TIMEOUT_S):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise ConfigError(f"{fragment.name}: its tools did not end after {TIMEOUT_S:.0f} s") from None
    look_old(configuration)
    if process.returncode:
        raise ConfigError(f"{fragment.name}: {said.decode('utf-8', 'replace').strip() or 'postconf failed'}")


def _read(directory: Path) -> dict[str, bytes]:
    try:
        return {name: _content(directory / name) for name in FILES}
    except OSError as error:
        raise ConfigError(
            f"{error.filename}: cannot be read: {error.strerror}; is Postfix configured there?"
        ) from error


def _content(path: Path) -> bytes:
    with open_named(path) as file:
        return file.read()


def _put_back(directory: Path, contents: dict[str, bytes]) -> None:
    """Replaces each changed file atomically, with the same owner and mode.

    Root writes as the owner of the directory.
    """
    for name, content in contents.items():
        path = resolved(directory / name)
        with as_owner_of(path.parent):
            if _content(path) != content:
                info = path.stat()
                owner = (info.st_uid, info.st_gid) if os.geteuid() == 0 else None
                write_flushed(path, content, info.st_mode & 0o7777, owner)


def _diff(path: Path, before: bytes, after: bytes) -> str:
    old, new = (content.decode("utf-8", "replace").splitlines(keepends=True) for content in (before, after))
    return "".join(difflib.unified_diff(old, new, f"{path} (before)", f"{path} (after)", n=1))
