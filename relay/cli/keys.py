"""`qumail-relay keys status`: number of quantum keys, their consumption, and when they will run out.
The source is a recent report of the serving relay, else the KMEs themselves.

KM client and store are imported when needed: their import takes longer than all else.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.text import Text

from relay.cli.as_relay import become_the_relays_user, load
from relay.cli.lazy import LaterCommand, LazyGroup
from relay.cli.logs import configure_logging
from relay.cli.options import as_relay_option, config_option
from relay.cli.output import Cell, json_option, plain_console, print_json, print_table
from relay.config import Config, LogSettings
from relay.errors import ConfigError, StoreUnavailable
from relay.files.credentials import credential_name, is_there
from relay.files.stamps import read_json
from relay.identity import identity_findings, with_documents
from relay.runtime.release import Release
from relay.status.active_alarms import of_the_serving_relay
from relay.store.secret import SiteSecret

FRESH_S = 60.0


class _ReportedPool(BaseModel):
    """The fields used of a row for a KME and peer; it has more."""

    model_config = ConfigDict(extra="allow")
    kme: str
    peer: str
    trouble: str
    alarm: bool
    pool_keys: int
    stored_keys: int | None
    status_age_s: float | None
    refill_bits_per_s: float | None
    use_bits_per_s: float
    empty_in_s: float | None


class _ReportedLevel(BaseModel):
    """The same for a peer and level."""

    model_config = ConfigDict(extra="allow")
    peer: str
    level: str
    keys_used: int
    use_bits_per_s: float
    share: float
    empty_in_s: float | None


class _Report(BaseModel):
    """The serving relay's report (relay/keys/report.py, relay/process/upkeep.py)."""

    model_config = ConfigDict(extra="allow")
    pools: list[_ReportedPool]
    levels: list[_ReportedLevel]


BAD = "bold red"


COMMANDS = {
    "plan": LaterCommand(
        "keys_plan:plan",
        "Say how many keys a number of mails a day takes at a level, and what rate and stock of keys that needs.",
    ),
    "trial": LaterCommand(
        "keys_trial:trial",
        "Have each KME give a key for each peer, and the peer's relay find one: it costs two keys and a small mail's.",
    ),
}


@click.group(cls=LazyGroup, later=COMMANDS)
def keys() -> None:
    """Look after the quantum keys: stored, used, and how long they will last."""


@keys.command()
@as_relay_option
@json_option()
def status(config_file: Path, as_json: bool) -> None:
    """Show each KME and peer: keys stored, refill and use, time to empty; received keys; certificates that end.

    Figures of use come from the relay that serves; without one, only what the KMEs themselves say is known.
    Exit status 1 where a KME is in trouble, keys will soon be gone, or a peer has no KME group.
    """
    configure_logging(LogSettings(level="error"))
    config, _ = with_documents(load(config_file))
    report = asyncio.run(_report(config))
    if as_json:
        print_json(report)
    else:
        _print(plain_console(), report)
    troubled = any(row["trouble"] or row["alarm"] for row in report["pools"])
    if troubled or report["peers_without_keys"] or any(row["problems"] for row in report["certificates"]):
        sys.exit(1)


@keys.command("rotate-secret")
@config_option
def rotate_secret(config_file: Path) -> None:
    """Put a fresh site secret before those in its file; received keys are sealed under it from the next start on.

    Relays that share a database need the same file: copy it to all of them and restart them before `keys reseal`.
    """
    config = load(config_file)
    if credential_name(config.store.secret):
        from relay.cli import credentials

        if os.geteuid():
            raise ConfigError(f"{config.store.secret}: is a credential of systemd, which root alone can make: as root")
        secret = credentials.rotate(config.store.secret)
    else:
        become_the_relays_user(config_file)
        secret = SiteSecret.rotate(config.store.secret)
    click.echo(f"{config.store.secret}: newest secret {secret.ids[0]}, older ones kept: {len(secret.ids) - 1}")


@keys.command()
@config_option
def reseal(config_file: Path) -> None:
    """Seal received keys and quarantined mail anew under the newest site secret.

    Keys that wait beside the store are taken over into it first. Exit status 0 means that the older lines may be taken
    out of the secret's file. Run this first on each host whose relay has the same file.
    """
    configure_logging(LogSettings(level="error"))
    config = load(config_file)
    newest = _newest_of_credential(config)
    become_the_relays_user(config_file)
    if newest not in ("", SiteSecret.load(config.store.secret).ids[0]):
        raise StoreUnavailable("the relay that serves has an older secret: restart it, then run this again")
    try:
        taken_over, resealed = asyncio.run(_reseal(config))
    except OSError as error:
        raise StoreUnavailable(f"{error.filename or config.state_directory}: {error.strerror}") from error
    click.echo(f"{resealed} keys and messages sealed anew")
    if taken_over:
        click.echo(f"{taken_over} keys that waited in {config.state_directory} taken over first")


def _newest_of_credential(config: Config) -> str:
    """The ID of the newest secret on the disk; the relay has those of its start. Raises ConfigError."""
    if os.geteuid() or not credential_name(config.store.secret):
        return ""
    from relay.cli import credentials

    return credentials.newest(config.store.secret)


async def _reseal(config: Config) -> tuple[int, int]:
    """The numbers of keys taken over and of rows resealed. Raises StoreUnavailable."""
    secret = SiteSecret.load(config.store.secret)
    serving = _serving_relay(config)
    if serving is not None and serving.get("site_secret", secret.ids[0]) != secret.ids[0]:
        raise StoreUnavailable(
            "the relay that serves still seals under an older secret: restart it, then run this again"
        )
    from relay.key_receiver import SPOOL, take_over_keys
    from relay.store.store import open_store

    async with await open_store(config.store.database, secret) as store:
        taken_over = await take_over_keys(config.state_directory / SPOOL, secret, store.received)
        resealed = await store.reseal()
    if older := await asyncio.to_thread(_under_older_secrets, config.state_directory / SPOOL, secret):
        raise StoreUnavailable(
            f"{older[0]}: is under an older secret, which is needed until a relay that was restarted has taken it over "
            f"({len(older)} such files): restart the relay, then run this again"
        )
    return taken_over, resealed


def _under_older_secrets(spool: Path, secret: SiteSecret) -> list[Path]:
    """The files that need older secrets. Raises OSError if one is unreadable: it may need them."""
    from relay.store.record_files import contents
    from relay.store.spool import SUFFIX

    files = list(contents(spool, SUFFIX, secret))
    for unread in filter(None, (each.error for each in files)):
        raise unread
    return [each.path for each in files if each.secret_ids - {secret.ids[0]}]


async def _report(config: Config) -> dict[str, Any]:
    report = _serving_relay(config)
    if report is None:
        from relay.keys.build import key_ring

        async with key_ring(config, prefetch=False) as ring:
            report = {"source": "the KMEs", "age_s": 0.0, **(await ring.report()).as_json()}
        for row in report["pools"]:
            if row["stored_keys"] is None and not row["trouble"]:
                row["trouble"] = "does not say how many keys it has"
    gone = {each.about: each.cause for each in of_the_serving_relay(config) if each.alarm.name == "keys_gone"}
    for row in report["pools"]:
        row["trouble"] = row["trouble"] or gone.get(row["peer"], "")
    certificates = [
        {"what": title, "problems": list(problems)} for title, problems in identity_findings(config, datetime.now(UTC))
    ]
    without = [{"peer": name, "problem": problem} for name, problem in config.peers_without_keys.items()]
    return report | {"received": await _received(config), "certificates": certificates, "peers_without_keys": without}


def serves(config: Config) -> bool:
    """Whether a relay serves here, judged by its recent report."""
    return _serving_relay(config) is not None


def _serving_relay(config: Config) -> dict[str, Any] | None:
    """The serving relay's last report, or None."""
    try:
        return read_report(config.keys_file)
    except (OSError, ValueError):
        return None


def read_report(written: Path) -> dict[str, Any] | None:
    """A report file of the serving relay, None if it is old. Raises OSError, and ValueError if damaged."""
    age = time.time() - written.stat().st_mtime
    if abs(age) >= FRESH_S:  # a time in the future means that the clock was set back
        return None
    report = read_json(written, lambda content: _Report.model_validate(content).model_dump())
    return report | {"source": "the serving relay", "age_s": round(age, 1)}


def troubles_of_the_serving_relay(config: Config) -> list[tuple[str, str, str]]:
    """The troubles that a serving relay reports: KME, peer and trouble."""
    rows = (_serving_relay(config) or {}).get("pools", [])
    return [(str(row["kme"]), str(row["peer"]), str(row["trouble"])) for row in rows if row["trouble"]]


def ready_at_the_serving_relay(config: Config) -> dict[tuple[str, str], int]:
    """The number of fresh keys ready in the serving relay, by KME and peer."""
    rows = (_serving_relay(config) or {}).get("pools", [])
    return {(str(row["kme"]), str(row["peer"])): int(row["pool_keys"]) for row in rows}


def release_of_the_serving_relay(config: Config) -> Release | None:
    """The release that the serving relay runs; None without one, or if it does not report it."""
    said = (_serving_relay(config) or {}).get("release")
    try:
        return Release(**{name: str(value) for name, value in dict(said or {}).items()})
    except (TypeError, ValueError):
        return None


def key_receiver_ended(config: Config) -> bool:
    """Whether the serving relay reports that its second process has ended."""
    return bool((_serving_relay(config) or {}).get("key_receiver_ended"))


async def _received(config: Config) -> list[dict[str, Any]]:
    """Stored keys of arriving mail, by KME group and sender; nothing before the first start."""
    if not is_there(config.store.secret):
        return []
    from relay.store.store import open_store

    async with await open_store(config.store.database, SiteSecret.load(config.store.secret)) as store:
        counts = await store.received.counts()
    return [
        {"group": group, "master_sae": master, "held": each.held, "used": each.used, "destroyed": each.destroyed}
        for (group, master), each in sorted(counts.items())
    ]


def _print(console: Console, report: dict[str, Any]) -> None:
    title = f"Keys for sealing (from {report['source']}, {report['age_s']:.0f} s ago; refill and use in kbit/s)"
    headings = ("KME", "peer", "ready", "stored", "refill", "use", "empty in", "state")
    print_table(console, headings, map(_pool, report["pools"]), title=title)
    for row in report["pools"]:
        if row["trouble"]:
            _say(console, f"KME {row['kme']}", row["trouble"])
    if report["levels"]:
        columns = ("peer", "level", "keys used", "use", "share", "alone empty in")
        print_table(console, columns, map(_level, report["levels"]), title="Use by level (in kbit/s)")
    if report["received"]:
        title = "Received keys, kept until their mail is delivered"
        rows = ([str(value) for value in row.values()] for row in report["received"])
        print_table(console, ("group", "SAE", "held", "used", "destroyed"), rows, title=title)
    for row in report["peers_without_keys"]:
        _say(console, f"peer {row['peer']}", row["problem"])
    for row in report["certificates"]:
        for problem in row["problems"]:
            _say(console, row["what"], problem)


def _pool(row: dict[str, Any]) -> Sequence[Cell]:
    state = ("trouble" if row["trouble"] else "") or ("runs out" if row["alarm"] else "ok")
    return (
        row["kme"],
        row["peer"],
        str(row["pool_keys"]),
        _stored(row),
        _rate(row["refill_bits_per_s"]),
        _rate(row["use_bits_per_s"]),
        _time(row["empty_in_s"]),
        Text(state, style="green" if state == "ok" else BAD),
    )


def _level(row: dict[str, Any]) -> Sequence[Cell]:
    use, alone = _rate(row["use_bits_per_s"]), _time(row["empty_in_s"])
    return row["peer"], row["level"], str(row["keys_used"]), use, f"{row['share']:.0%}", alone


def _say(console: Console, title: str, problem: str) -> None:
    console.print(Text.assemble((title, BAD), f": {problem}"), soft_wrap=True)


def _stored(row: dict[str, Any]) -> str:
    """The number of keys at the KME, or since when it is unknown."""
    if row["stored_keys"] is not None:
        return str(row["stored_keys"])
    return "?" if row["status_age_s"] is None else f"? for {_time(row['status_age_s'])}"


def _rate(bits_per_s: float | None) -> str:
    return "?" if bits_per_s is None else f"{bits_per_s / 1000:.1f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
