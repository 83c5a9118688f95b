"""`qumail-relay trace`: what happened to one mail here, in order, from the audit record and from a log.
Exit status 0 found, 1 nothing is known of it, 2 usage; reading changes nothing.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

import click

from relay.audit.reading import lines
from relay.cli.options import config_option
from relay.config import load_config
from relay.errors import ConfigError
from relay.mime import hash_of_id
from relay.policy.names import printable

NAMES = ("mail", "queue_id", "queued_as", "message_id", "sealed")
"""The members of records and log lines by which a mail is known."""
DAYS = 7
UNIT = "qumail-relay"
_HASH = re.compile(r"[0-9a-f]{12}|[0-9a-f]{16}")
_OF_MAIL = re.compile(r"\bmail=([0-9a-f]{12})\b")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d\S*")
_NOT_TOLD = ("event", "mail", "queue_id", "message_id", "level", "timestamp", "number", "time", "previous", "worker")


@dataclass
class Story:
    """What is known of a mail: by which names, under which ids it was tried, and what was written of it."""

    names: set[str]
    mails: set[str] = field(default_factory=set)
    steps: list[dict[str, Any]] = field(default_factory=list)

    def take(self, said: dict[str, Any], source: str, when: str) -> None:
        """Adds what a record or a log line says, where that is about this mail."""
        if said.get("mail") not in self.mails and self.names.isdisjoint(str(said.get(name)) for name in NAMES):
            return
        if mail := said.get("mail"):
            self.mails.add(str(mail))
        self.steps.append({"time": when, "source": source} | said)


@click.command()
@config_option
@click.option(
    "--directory", type=click.Path(path_type=Path), help="Another directory of records than the configured one."
)
@click.option("--since", help=f"How far back: 2026-11-25 or 2026-11-25T10:00; {DAYS} days where nothing is said.")
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON array.")
@click.argument("mail", metavar="ID")
@click.argument("log", required=False)
def trace(
    config_file: Path, directory: Path | None, since: str | None, as_json: bool, mail: str, log: str | None
) -> None:
    """Tell what happened to one mail here, in order, from the audit record and a log.

    ID is the mail server's queue ID, a Message-ID, or what log lines and Received fields call the mail: its id here, or
    that of its sealed form, which both sites know. LOG is a file, or - for standard input:
    `journalctl -u qumail-relay -o cat | qumail-relay trace ID -`. Without it the journal is asked, where there is one.
    """
    since = since or (datetime.now(UTC) - timedelta(days=DAYS)).strftime("%Y-%m-%dT%H:%M")
    where = directory or load_config(config_file).audit_directory
    story = Story({mail, mail.upper()} if _HASH.fullmatch(mail) else {mail, hash_of_id(mail)})
    _read_records(story, where, since)
    with _log(log, since) as file:
        for line in file:
            _read_line(story, line)
    story.steps.sort(key=lambda step: str(step["time"]))
    if as_json:
        click.echo(json.dumps(story.steps, indent=2))
    else:
        _print(story)
    if not story.steps:
        click.echo(f"{printable(mail)}: nothing is known of it here since {since}", err=True)
        sys.exit(1)


def _read_records(story: Story, directory: Path, since: str) -> None:
    if not directory.exists():
        return
    wanted = [name.encode() for name in story.names]
    for line in lines(directory, since):
        known = wanted if not story.mails else (*wanted, *(mail.encode() for mail in story.mails))
        if any(name in line.octets for name in known) and (record := line.record()) is not None:
            story.take(record, "record", str(record.get("time", "")))


def _read_line(story: Story, line: str) -> None:
    """One line of a log, as the relay writes it for programs or for people."""
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        said = None
    if isinstance(said, dict):
        story.take(said, "log", str(said.get("timestamp", "")))
    elif found := _OF_MAIL.search(line):
        words = dict(re.findall(r"\b(queue_id|message_id|sealed)=(\S+)", line)) | {"mail": found[1]}
        time = _TIME.search(line)
        story.take(words | {"event": line.strip()}, "log", time[0] if time else "")


@contextmanager
def _log(log: str | None, since: str) -> Iterator[Iterable[str]]:
    """The lines of the log. Raises ConfigError where a file cannot be read."""
    if log == "-":
        yield sys.stdin
    elif log is not None:
        try:
            file: TextIO = open(log, encoding="utf-8", errors="replace")  # noqa: SIM115, PTH123 - closed below
        except OSError as error:
            raise ConfigError(f"{log}: cannot be read: {error.strerror}") from error
        with file:
            yield file
    elif journal := shutil.which("journalctl"):
        words = [journal, "--unit", UNIT, "--output", "cat", "--utc", "--since", since.replace("T", " ") + " UTC"]
        with subprocess.Popen(  # noqa: S603 - these words alone
            words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8", errors="replace"
        ) as process:
            yield process.stdout or ()
    else:
        yield ()


def _print(story: Story) -> None:
    for mail in sorted(story.mails):
        steps = [step for step in story.steps if step.get("mail") == mail]
        known = {name: str(step[name]) for step in steps for name in NAMES[1:] if step.get(name)}
        click.echo(printable(f"mail {mail}" + "".join(f", {name} {value}" for name, value in known.items())))
        for step in steps:
            click.echo(printable(f"  {step['time']}  {_told(step)}"))


def _told(step: dict[str, Any]) -> str:
    """One line of text."""
    if step["source"] == "record" and step.get("event") == "mail":
        return _record_told(step)
    rest = {name: value for name, value in step.items() if name not in (*_NOT_TOLD, "source") and value not in ("", [])}
    words = " ".join(f"{name}={value}" for name, value in rest.items())
    return f"{'ledger: ' if step['source'] == 'record' else ''}{step.get('event', '')} {words}".rstrip()


def _record_told(record: dict[str, Any]) -> str:
    level = f"{record.get('level')} {'for' if record.get('direction') == 'outgoing' else 'from'} {record.get('peer')}"
    parts = [
        f"record {record.get('number')}: {record.get('outcome')}, {len(record.get('recipients', ()))} recipients",
        level if record.get("peer") else str(record.get("level")),
        f"keys {' '.join(record['key_IDs'])}" if record.get("key_IDs") else "",
        f"by {record['policy']}" if record.get("policy") else "",
        f"{record['reason']}: {record.get('cause', '')}" if record.get("reason") else "",
        f"at {record['next_hop']}" if record.get("next_hop") else "",
    ]
    return "; ".join(filter(None, parts))
