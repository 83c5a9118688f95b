"""`qumail-relay audit`: verifies and exports the audit record, and signs checkpoints of it.
Exit status 0 fine, 1 if it was changed, is unreadable, or does not fit a checkpoint, 2 usage; changes nothing.
"""

from __future__ import annotations

import csv
import io
import json
import socket
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import click

from relay.audit.chain import GENESIS
from relay.audit.reading import records
from relay.audit.verifying import ExpectedLine, Verified, verify as verified_chain
from relay.cli.as_relay import load, reader_of, relay_rights
from relay.cli.options import (
    InputFile,
    chosen,
    config_option,
    create_named,
    output_option,
    since_option,
    until_option,
    write_named,
)
from relay.cli.output import json_option, print_json
from relay.errors import ConfigError
from relay.files.rights import acting_as, become
from relay.levels import ALL_SEALING, strength
from relay.policy.names import printable
from relay.policy.strength import strength_of

COLUMNS = (
    "number", "begun", "time", "event", "direction", "listener", "mail", "queue_id", "message_id", "sealed", "peer",
    "level", "algorithms", "key_IDs", "kme_group", "quantum_bits", "policy", "policy_version", "listed", "outcome",
    "reason", "cause", "octets", "octets_out", "sender", "recipients", "next_hop", "queued_as", "message", "by",
    "keys_out", "version", "before", "way", "uid", "sudo_user", "known_by", "files", "added", "added_more",
    "changed", "changed_more", "removed", "removed_more", "compared", "weaker", "weakened", "weakened_more", "raised",
    "raised_more", "otherwise", "otherwise_more", "earlier", "previous",
)  # fmt: skip
"""Columns of a CSV file; items of a list are separated by a space. Each event fills its own columns."""

_NOBODY_GOT_IT = ("dropped", "opened")
"""Events about one sealed mail that give it to no further recipient."""

directory_option = click.option(
    "--directory", type=click.Path(path_type=Path), help="Another directory of records than the configured one."
)


@click.group()
def audit() -> None:
    """Look at the record of all mails: what protected each, by which policy, and what became of it."""


@audit.command()
@config_option
@directory_option
@click.option("--head", help="A head that was kept elsewhere: shows that nothing is missing up to it.")
@click.option("--checkpoint", "kept", type=InputFile(), help="A checkpoint that was kept elsewhere: the same.")
@click.option("--signer", help="Whose key must have signed it: SHA-256, as `audit checkpoint` said; default: ours.")
@json_option()
def verify(
    config_file: Path,
    directory: Path | None,
    head: str | None,
    kept: BinaryIO | None,
    signer: str | None,
    as_json: bool,
) -> None:
    """Follow the chain of hashes from the first record to the last, over all files.

    The chain shows every change within it. The log has a head in each `ledger_written`. Only a checkpoint or a head
    that was kept elsewhere shows that records are missing at the ends, or all of it was written anew. What a checkpoint
    covers may be missing at the beginning alone, once it is older than the checkpoint has signed that records are kept.
    """
    become(reader_of(config_file, directory))
    where = directory or load(config_file).audit_directory
    expected = _expected(config_file, kept, signer) if kept is not None else None
    if not where.exists() and head is None and expected is None:
        click.echo(f"{where}: not there yet; nothing was recorded")
        return
    keep_days = load(config_file).audit.keep_days if head is not None and directory is None else None
    result = verified_chain(where, expected, head, keep_days=keep_days)
    if as_json:
        print_json(_facts(where, result))
    else:
        for problem in result.problems:
            click.echo(printable(problem), err=True)
        for place in result.broken_off:
            click.echo(f"{printable(str(place))}: broken off by a crash; it was confirmed to nobody")
        for said in result.times_back:
            click.echo(printable(said))
        if result.removed:
            click.echo(f"{where}: {printable(str(result.removed))}")
        if not result.problems:
            fits = " and fits the checkpoint" if expected is not None else ""
            click.echo(
                f"{where}: {result.entries} records, whole{fits}; the last is {result.number}, head {result.head}"
            )
    if result.problems:
        sys.exit(1)


@audit.command()
@config_option
@directory_option
@output_option
def checkpoint(config_file: Path, directory: Path | None, output: Path | None) -> None:
    """Sign how far the record goes, with the site's key (level pqc), for an auditor to keep.

    All of it is verified first. `audit verify --checkpoint FILE` says later whether anything of it was changed, or
    removed sooner than `keep_days` of [audit] allows now, which the checkpoint says. Verify with the checkpoint before
    when you take the next one: that one does not show what was missing already.
    """
    from relay.audit.checkpoint import Checkpoint, sign, signer_of
    from relay.identity import own_identity

    config = load(config_file)
    where = directory or config.audit_directory
    with relay_rights(config):
        identity = own_identity(config)
    if identity is None:
        raise ConfigError("there is no key to sign with: set [identity], and run `qumail-relay identity new`")
    with acting_as(reader_of(config_file, directory)):
        result = verified_chain(where) if where.exists() else Verified(0, 0, GENESIS, ())
    if result.problems:
        raise ConfigError(list(result.problems))
    time = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    site, keep_days = config.site, config.audit.keep_days
    said = Checkpoint(
        site.name, site.sae_id, socket.gethostname(), time, result.lasting, result.number, result.head, keep_days,
        result.days,
    )  # fmt: skip
    write_named(output, sign(said, identity.signing.private_key).encode())
    signer = signer_of(identity.signing.private_key.public_key())
    if said.first > 1:
        click.echo(f"not covered: numbers up to {said.first - 1}, which records say were removed", err=True)
    kept = f"kept for {keep_days} days"
    click.echo(
        f"signed: {said.number - said.first + 1} records, the last is {result.number}, {kept}; signer {signer}",
        err=True,
    )


@audit.command()
@config_option
@directory_option
@since_option
@until_option
@click.option("--peer", help="Only mail to and from this peer.")
@click.option(
    "--below",
    type=click.Choice(ALL_SEALING),
    help="Only mail that was protected by less than this level, or not at all.",
)
@click.option("--format", "form", type=click.Choice(("jsonl", "csv")), default="jsonl", show_default=True)
@output_option
def export(
    config_file: Path,
    directory: Path | None,
    since: str | None,
    until: str | None,
    peer: str | None,
    below: str | None,
    form: str,
    output: Path | None,
) -> None:
    """Hand out the records, the oldest first: as they are, one JSON object a line, or as a table.

    With --below there are those alone of mail that left or was delivered; the ledger's lines on it are among them.
    """
    config = load(config_file) if directory is None else None
    where = directory or config.audit_directory  # type: ignore[union-attr]
    file = io.TextIOWrapper(create_named(output), "utf-8", newline="") if output is not None else sys.stdout
    become(reader_of(config_file, directory))
    every = records(where, since or "") if where.exists() else iter(())
    asked = chosen(every, since, until, peer, config.peers if config is not None else ())
    found = (record for record in asked if below is None or _is_below(record, below))
    _export(found, form, file)
    if output is not None:
        file.close()


def _is_below(record: dict[str, Any], level: str) -> bool:
    """Whether somebody has, or may have, this mail with less protection than this level."""
    has_it = (
        record.get("outcome") in (None, "delivered", "inside", "unknown") and record.get("event") not in _NOBODY_GOT_IT
    )
    known = record.get("level") not in (None, "none")
    return has_it and known and strength_of(str(record["level"])) < strength(level)  # type: ignore[arg-type]


def _export(records: Iterator[dict[str, Any]], form: str, file: Any) -> None:
    if form == "jsonl":
        for record in records:
            file.write(json.dumps(record) + "\n")
        return
    writer = csv.DictWriter(file, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({name: _cell(value) for name, value in record.items()})


def _cell(value: object) -> str:
    """The value, printable and never a spreadsheet formula: causes contain strangers' text."""
    text = printable(" ".join(map(str, value)) if isinstance(value, list) else str(value))
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def _expected(config_file: Path, kept: BinaryIO, signer: str | None) -> ExpectedLine:
    from relay.audit.checkpoint import MAX_OCTETS, read

    signed = read(kept.read(MAX_OCTETS + 1), kept.name)
    ours = _our_signers(config_file) if signer is None else {signer.lower().replace(":", "")}
    if signed.signer not in ours:
        whose = "none of this site's signing keys (--signer says whose it may be)" if signer is None else "another key"
        raise ConfigError(f"{kept.name}: signed by {signed.signer}, which is {whose}")
    return signed.checkpoint.expected


def _our_signers(config_file: Path) -> set[str]:
    """Returns the fingerprints of all signing keys, including those before the last renewal."""
    from relay.audit.checkpoint import signer_of
    from relay.identity.directory import signing_keys

    try:
        config = load(config_file)
    except ConfigError as error:
        raise ConfigError(
            f"say with --signer whose checkpoint it is: no keys of this site are here ({error})"
        ) from error
    with relay_rights(config):
        if config.identity is None or not config.identity.directory.exists():
            raise ConfigError("this site has no [identity]: say with --signer whose checkpoint it is")
        return set(map(signer_of, signing_keys(config.identity.directory)))


def _facts(where: Path, result: Verified) -> dict[str, Any]:
    return {
        "directory": str(where),
        "records": result.entries,
        "first": result.first,
        "last": result.number,
        "head": result.head,
        "problems": list(result.problems),
        "broken_off": list(result.broken_off),
        "times_back": list(result.times_back),
        "removed": result.removed,
    }
