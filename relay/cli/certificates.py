"""`qumail-relay certificates`: other people's and gateways' S/MIME certificates, which level smime seals to.
Exit status 0 fine, 1 something is wrong with the file or the name, 2 wrong usage.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import click
from cryptography import x509

from relay.cli.as_relay import load
from relay.cli.options import InputFile, config_option
from relay.cli.output import json_option, plain_console, print_json, print_pairs, print_table
from relay.config import Config
from relay.errors import ConfigError
from relay.files.rights import as_owner_of
from relay.formats.mailbox import fold_domain
from relay.smime import CertificateDirectory, addresses_of, domains_of, unusable_for_sealing
from relay.smime.directory import fingerprint
from relay.smime.importing import MAX_OCTETS, Offered, certificates_in, file_under, offered
from relay.smime.usable import comparable


@click.group()
def certificates() -> None:
    """Other people's and gateways' S/MIME certificates, for level smime.

    They lie in the directory that [smime] names, one file for each address or domain. A change counts for the next
    mail.
    """


@certificates.command("import")
@config_option
@click.option(
    "--domain", "domains", multiple=True, help="File it for everybody at this domain: the certificate of a gateway."
)
@click.option("--yes", is_flag=True, help="Do not ask. It trusts the writer of the file: use --fingerprint instead.")
@click.option("--fingerprint", "expected", help="Do not ask; import the certificate with this one (SHA-256) alone.")
@click.argument("file", type=InputFile())
def import_file(config_file: Path, domains: tuple[str, ...], yes: bool, expected: str | None, file: BinaryIO) -> None:
    """Take the certificates in FILE (PEM, DER or PKCS#7): mail for their addresses can be sealed to them.

    It shows whom each names, who issued it, until when, and its fingerprint, and asks. Compare the fingerprint with
    the other side, over a telephone number that you did not take from the same mail. An attacker who can exchange the
    file can read the mail.

    A certificate counts for the addresses that it names. That of a gateway, which names an address such as
    securemail@bob.example or the domain, counts for everybody at each --domain. Somebody's own comes first.
    """
    directory = CertificateDirectory(load(config_file).certificates_directory)
    content = file.read(MAX_OCTETS + 1)
    if len(content) > MAX_OCTETS:
        raise ConfigError(f"{file.name}: larger than {MAX_OCTETS} bytes")
    try:
        folded = [fold_domain(each) for each in domains]
        found = offered(certificates_in(content), folded, datetime.now(UTC))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except ConfigError as error:
        raise ConfigError(f"{file.name}: {error}") from error
    if expected is not None:
        found = [each for each in found if fingerprint(each.certificate) == _digits(expected)]
        if not found:
            raise ConfigError(f"{file.name}: not imported, no certificate in it has that fingerprint")
    for each in found:
        _show(each)
        names = ", ".join(each.names)
        if yes or expected is not None or click.confirm(f"Use it for {names}?"):
            with as_owner_of(directory.path):
                for name in each.names:
                    file_under(directory, name, each.certificate)
            click.echo(f"Imported for {names}.")


_offered_option = click.option(
    "--offered", is_flag=True, help="Those that came with signed mail, which count only once they are accepted."
)


@certificates.command()
@config_option
@click.option("--fingerprint", "expected", help="Do not ask; accept the certificate with this one (SHA-256) alone.")
@click.argument("name")
def accept(config_file: Path, expected: str | None, name: str) -> None:
    """Take a certificate that came with signed mail from NAME, an address (`certificates list --offered`).

    It shows each and asks, as `import` does. Anybody can sign with a certificate of their own making for any address:
    compare the fingerprint with the other side first.
    """
    config, name = load(config_file), comparable(name)
    directory, offers = (CertificateDirectory(each) for each in _directories(config))
    with as_owner_of(offers.path):
        found = offers.named(name)
    now = datetime.now(UTC)
    usable = [each for each in found.certificates if not unusable_for_sealing(each, now)]
    if not usable:
        raise ConfigError(f"{name} has offered no certificate: {found.cause or found.why_not(now)}")
    accepted: list[x509.Certificate] = []
    for each in offered(usable, (), now):
        if expected is not None and fingerprint(each.certificate) != _digits(expected):
            continue
        _show(each)
        if expected is not None or click.confirm(f"Use it for {name}?"):
            with as_owner_of(directory.path):
                file_under(directory, name, each.certificate)
            accepted.append(each.certificate)
            click.echo(f"Accepted for {name}.")
    if expected is not None and not accepted:
        raise ConfigError(f"{name}: not accepted, no certificate offered has that fingerprint")
    with as_owner_of(offers.path):  # others may have come meanwhile
        offers.put(name, [each for each in offers.named(name).certificates if each not in accepted])


@certificates.command("list")
@config_option
@json_option("one JSON object for each certificate, in a list")
@_offered_option
@click.argument("names", nargs=-1)
def list_all(config_file: Path, as_json: bool, offered: bool, names: tuple[str, ...]) -> None:
    """List all certificates, or those of NAMES (addresses or domains)."""
    directory = CertificateDirectory(_directories(load(config_file))[offered])
    rows: list[dict[str, Any]] = []
    with as_owner_of(directory.path):
        for name in map(comparable, names) if names else directory.names():
            found = directory.named(name)
            if found.cause:
                raise ConfigError(found.cause)
            rows += [{"for": name} | _facts(each) for each in found.certificates]
    if as_json:
        print_json(rows)
    elif rows:
        headings = ("for", "subject", "issuer", "ends", "fingerprint", "sealed to")
        columns = ("for", "subject", "issuer", "ends")
        cells = [(*(row[each] for each in columns), row["fingerprint"][:16], row["trouble"] or "yes") for row in rows]
        print_table(plain_console(), headings, cells)
    elif offered:
        click.echo("No certificates came with signed mail from others, or all are accepted.")
    else:
        click.echo("No certificates yet: take some in with `qumail-relay certificates import FILE`.")


@certificates.command()
@config_option
@click.option("--fingerprint", "which", help="Only the certificate whose fingerprint begins with these digits.")
@_offered_option
@click.argument("name")
def remove(config_file: Path, which: str | None, offered: bool, name: str) -> None:
    """Remove the certificates of NAME, an address or a domain: nothing more is sealed to them."""
    directory = CertificateDirectory(_directories(load(config_file))[offered])
    name = comparable(name)
    with as_owner_of(directory.path):
        found = directory.named(name)
        file = directory.file_of(name)
        if file is None or not file.exists():
            raise ConfigError(f"{directory.path}: nothing is there for {name!r}")
        digits = _digits(which or "")
        kept: list[x509.Certificate] = []
        if which is not None:
            kept = [each for each in found.certificates if not fingerprint(each).startswith(digits)]
            if len(kept) == len(found.certificates):
                raise ConfigError(f"{name}: no certificate there has a fingerprint that begins with {which!r}")
        directory.put(name, kept)
    gone = "its certificates" if not kept else "that certificate"
    click.echo(f"{name}: {gone} removed; {len(kept)} left.")


def _directories(config: Config) -> tuple[Path, Path]:
    """That of the certificates in force, and of those offered."""
    return config.certificates_directory, config.offered_certificates_directory


def _digits(fingerprint: str) -> str:
    return fingerprint.replace(":", "").replace(" ", "").lower()


def _show(each: Offered) -> None:
    facts = _facts(each.certificate)
    named = sorted(addresses_of(each.certificate) | domains_of(each.certificate))
    print_pairs(
        plain_console(),
        [
            ("subject", facts["subject"]),
            ("names", named),
            ("issuer", facts["issuer"]),
            ("valid", f"{facts['begins']} to {facts['ends']}"),
            ("for", each.uses),
            ("fingerprint", facts["fingerprint"]),
        ],
    )


def _facts(certificate: x509.Certificate) -> dict[str, str]:
    return {
        "subject": certificate.subject.rfc4514_string() or "(none)",
        "issuer": certificate.issuer.rfc4514_string() or "(none)",
        "begins": f"{certificate.not_valid_before_utc:%Y-%m-%d}",
        "ends": f"{certificate.not_valid_after_utc:%Y-%m-%d}",
        "fingerprint": fingerprint(certificate),
        "trouble": unusable_for_sealing(certificate, datetime.now(UTC)),
    }
