"""`qumail-relay identity dkim`: the keys that sign for this site's mail domains, and their DNS records.
Standard: RFC 6376 3.6.2, RFC 1035 5.1 (zone files); exit status 1 if a DNS record is missing or wrong.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from relay.cli.as_relay import load, relays_user
from relay.cli.logs import configure_logging
from relay.cli.options import as_relay_option, config_option
from relay.cli.output import json_option, print_json
from relay.config import Config, DKIMKeySettings, DKIMSettings, LogSettings
from relay.dkim import ADVISED_RSA_BITS, Algorithm, KeyRecords, SigningKey, load_key, load_keys, make_key
from relay.dkim.keys import public_octets
from relay.dkim.records import Answers, NotPassed, public_key
from relay.errors import ConfigError
from relay.files.permissions import printable
from relay.files.rights import as_owner_of
from relay.formats.mailbox import fold_domain

STRING_OCTETS = 255
"""Maximum length of a string in a TXT record, in octets (RFC 1035, 3.3.14)."""


@click.group()
def dkim() -> None:
    """The keys that sign sealed mail for this site's domains (DKIM), and what has to stand in the DNS.

    A new key is used once it has its [[dkim.keys]] table and the relay has read relay.toml again (systemctl reload
    qumail-relay). The first key is used from a restart. Publish its record first, and leave the record of an old key in
    the DNS for some days after its last mail.
    """


@dkim.command()
@config_option
@click.argument("domain")
@click.argument("selector")
@click.option(
    "--algorithm",
    type=click.Choice(["rsa", "ed25519"]),
    default="rsa",
    show_default=True,
    help="Every verifier knows rsa; ed25519 (RFC 8463) is worth a second key.",
)
@click.option(
    "--bits",
    type=click.IntRange(ADVISED_RSA_BITS, 4096),
    default=ADVISED_RSA_BITS,
    show_default=True,
    help="The size of an RSA key; above 2048, some providers cannot publish the record.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file. [default: that of the key's table, or dkim/DOMAIN.SELECTOR.pem beside the site secret]",
)
def new(config_file: Path, domain: str, selector: str, algorithm: Algorithm, bits: int, output: Path | None) -> None:
    """Make a key for DOMAIN under SELECTOR, and print its DNS record.

    The file is readable by its owner only; one that is there is never replaced.
    """
    config = load(config_file)
    if domain.lower() not in config.site.domains:
        raise ConfigError(f"{domain}: none of site.domains ({', '.join(config.site.domains)})")
    path, configured = _place(config, domain.lower(), selector)
    path = output or path
    try:
        table = DKIMKeySettings.model_validate({"domain": domain, "selector": selector, "key": path})
        with as_owner_of(table.key.parent):
            key = make_key(table.key, fold_domain(table.domain), selector, algorithm, bits, owner=relays_user(config))
    except (ValidationError, ValueError) as error:
        raise click.UsageError(f"{selector!r} cannot be a selector: letters, digits, and . - _ between them") from error
    click.echo(zone_lines(key))
    if not configured:
        click.echo(
            "\nPublish this record, then add to relay.toml, and reload the relay:\n\n"
            f'[[dkim.keys]]\ndomain = "{table.domain}"\nselector = "{selector}"\nkey = "{path.absolute()}"',
            err=True,
        )


@dkim.command()
@as_relay_option
@json_option("a list of keys")
def show(config_file: Path, as_json: bool) -> None:
    """Print the DNS record of each key in relay.toml, and what is wrong with what the DNS has now."""
    configure_logging(LogSettings(level="error"))
    config = load(config_file)
    if config.dkim is None or not config.dkim.keys:
        raise ConfigError(f"{config_file}: no [[dkim.keys]] table; `qumail-relay identity dkim new` makes a key")
    records = asyncio.run(_published(config.dkim, load_keys(config)))
    if as_json:
        print_json([_as_dict(key, problems) for key, problems in records])
    else:
        for key, problems in records:
            click.echo(zone_lines(key))
            for problem in problems:
                click.echo(printable(problem), err=True)
    if any(problems for _, problems in records):
        sys.exit(1)


async def dkim_findings(config: Config) -> AsyncIterator[tuple[str, str, tuple[str, ...]]]:
    """For `check`: each item checked, its state and its faults; nothing without [dkim]."""
    if config.dkim is None:
        return
    for table in config.dkim.keys:
        title = f"DKIM key {table.selector} of {table.domain}"
        try:
            [(key, problems)] = await _published(config.dkim, [load_key(table)])
        except ConfigError as error:
            yield title, str(table.key), tuple(error.problems)
        else:
            yield title, f"{key.algorithm}, {key.bits} bits, in the DNS", tuple(problems)


async def _published(table: DKIMSettings, keys: Sequence[SigningKey]) -> list[tuple[SigningKey, list[str]]]:
    """Each key, and the faults of the key and its DNS record, as a verifier sees them."""
    answers = await KeyRecords(table.dns_servers).of([key.name for key in keys])
    return [(key, list(_record_problems(key, answers))) for key in keys]


def _record_problems(key: SigningKey, answers: Answers) -> Iterator[str]:
    if key.algorithm == "rsa" and key.bits < ADVISED_RSA_BITS:
        yield f"{key.name}: an RSA key of {key.bits} bits is weak; make one of {ADVISED_RSA_BITS} under a new selector"
    tags = {b"a": f"{key.algorithm}-sha256".encode(), b"d": key.domain.encode(), b"s": key.selector.encode()}
    texts = answers[key.name]
    if texts is not None and len(texts) > 1:
        yield f"{key.name}: the DNS has {len(texts)} TXT records there; leave one"
    advice = "`qumail-relay identity dkim show` prints the record that must be there"
    try:
        found = public_key(tags, answers)
    except NotPassed as failed:
        yield f"{key.name}: {failed.reason}" + ("" if texts is None else f"; {advice}")
        return
    if public_octets(found) != key.public:
        yield f"{key.name}: the DNS has another key; {advice}"


def zone_lines(key: SigningKey) -> str:
    """The record in zone file format."""
    text = key.record
    strings = [text[start : start + STRING_OCTETS] for start in range(0, len(text), STRING_OCTETS)]
    return f"{key.name}. IN TXT ( " + "\n    ".join(f'"{each}"' for each in strings) + " )"


def _place(config: Config, domain: str, selector: str) -> tuple[Path, bool]:
    """Returns the path of the key file, and whether relay.toml names it."""
    for table in config.dkim.keys if config.dkim else ():
        if (table.domain, table.selector) == (domain, selector):
            return table.key, True
    return config.own_directory / "dkim" / f"{domain}.{selector}.pem", False


def _as_dict(key: SigningKey, problems: list[str]) -> dict[str, Any]:
    return {"name": key.name, "algorithm": key.algorithm, "bits": key.bits, "record": key.record, "problems": problems}
