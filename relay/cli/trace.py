"""`qumail-relay trace`: the history of one mail here, in order, from the audit record and a log.
Exit status 0 found, 1 not found, 2 usage; changes nothing, and reports what could not be read.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from io import TextIOWrapper
from pathlib import Path

import click

from relay.audit.reading import lines
from relay.cli.as_relay import load, reader_of
from relay.cli.options import config_option
from relay.cli.output import json_option, print_json
from relay.cli.trace_story import Story, story_lines
from relay.errors import ConfigError
from relay.files import permissions
from relay.files.rights import acting_as, open_named
from relay.formats.mime import hash_of_id
from relay.policy.names import printable

DAYS = 7
UNIT = "qumail-relay"
MAX_PASSES = 5
"""Maximum number of passes over the record, in case later lines add names of the mail."""
_HASH = re.compile(r"[0-9a-f]{12}|[0-9a-f]{16}")
_OF_MAIL = re.compile(r"\bmail=([0-9a-f]{12})\b")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d\S*")
_HIDDEN = re.compile(r"not seeing|permission", re.IGNORECASE)
"""Messages of journalctl for a user who may not read all of the journal."""


@click.command()
@config_option
@click.option(
    "--directory", type=click.Path(path_type=Path), help="Another directory of records than the configured one."
)
@click.option("--since", help=f"How far back: 2026-11-25 or 2026-11-25T10:00; {DAYS} days where nothing is said.")
@json_option("one JSON array")
@click.argument("mail", metavar="ID")
@click.argument("log", required=False)
def trace(
    config_file: Path, directory: Path | None, since: str | None, as_json: bool, mail: str, log: str | None
) -> None:
    """Tell what happened to one mail here, in order, from the audit record and a log.

    Run it as root, who may read both. ID is the mail server's queue ID, a Message-ID, or what log lines and Received
    fields call the mail. That is its id here, or that of its sealed form, which both sites know. A mail that has passed
    the relay twice, in and out, is one story, and the last lines say what became of it so far. LOG is a file, or - for
    standard input: `journalctl -u qumail-relay -o cat | qumail-relay trace ID -`. Without it the journal is asked,
    where there is one.
    """
    since = since or (datetime.now(UTC) - timedelta(days=DAYS)).strftime("%Y-%m-%dT%H:%M")
    where = directory or load(config_file).audit_directory
    story = Story({mail, mail.upper()} if _HASH.fullmatch(mail) else {mail, hash_of_id(mail)})
    with acting_as(reader_of(config_file, directory)):
        _read_records(story, where, since)
    with _log(log, since) as file:
        for line in file:
            _read_line(story, line)
    story.steps.sort(key=lambda step: str(step["time"]))
    if as_json:
        print_json(story.steps)
    else:
        for text in story_lines(story):
            click.echo(text)
    if not story.steps:
        click.echo(f"{printable(mail)}: nothing is known of it here since {since}", err=True)
        sys.exit(1)


def _read_records(story: Story, directory: Path, since: str) -> None:
    """Reads all records about the mail, including those before the record that adds further names."""
    try:
        if not directory.exists():
            click.echo(f"{directory}: there are no records", err=True)
            return
        for _ in range(MAX_PASSES):
            count, words = story.known, story.words
            story.steps.clear()
            for line in lines(directory, since):
                if any(word in line.octets for word in words) and (record := line.record()) is not None:
                    story.take(record, "record", str(record.get("time", "")))
                    words = story.words
            if story.known == count:
                return
    except OSError as error:
        click.echo(f"{directory}: cannot be read as {permissions.user()} ({error.strerror}): run it as root", err=True)


def _read_line(story: Story, line: str) -> None:
    """Reads one log line, in the format for programs or for people."""
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        said = None
    if isinstance(said, dict):
        story.take(said, "log", str(said.get("timestamp", "")))
    elif match := _OF_MAIL.search(line):
        words = dict(re.findall(r"\b(queue_id|message_id|sealed)=(\S+)", line)) | {"mail": match[1]}
        time = _TIME.search(line)
        story.take(words | {"event": line.strip()}, "log", time[0] if time else "")


@contextmanager
def _log(log: str | None, since: str) -> Iterator[Iterable[str]]:
    """The lines of the log. Raises ConfigError if a file cannot be read."""
    if log == "-":
        yield sys.stdin
    elif log is not None:
        try:
            file = TextIOWrapper(open_named(Path(log)), encoding="utf-8", errors="replace")
        except OSError as error:
            raise ConfigError(f"{log}: cannot be read: {error.strerror}") from error
        with file:
            yield file
    elif journal := shutil.which("journalctl"):
        with _journal(journal, since) as lines:
            yield lines
    else:
        click.echo("no journal was read, for there is no journalctl: name the log as LOG", err=True)
        yield ()


@contextmanager
def _journal(journal: str, since: str) -> Iterator[Iterable[str]]:
    words = [journal, "--unit", UNIT, "--output", "cat", "--utc", "--since", since.replace("T", " ") + " UTC"]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints:
        with subprocess.Popen(  # noqa: S603 - these words alone
            words, stdout=subprocess.PIPE, stderr=complaints, encoding="utf-8", errors="replace"
        ) as process:
            yield process.stdout or ()
        complaints.seek(0)
        said = complaints.read().strip()
    if _HIDDEN.search(said):
        click.echo(f"the journal cannot be read as {permissions.user()}: run it as root", err=True)
    elif process.returncode:
        click.echo(f"the journal cannot be read: {printable(said.splitlines()[-1] if said else journal)}", err=True)
