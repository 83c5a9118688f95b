"""`qumail-relay identity`: this site's keys and certificates, and the documents that peers exchange.
Exit status 0 fine, 1 fault, 2 wrong usage; every question can be answered by an option.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import click

from relay.cli.as_relay import load, relay_rights, relays_user
from relay.cli.identity_tables import (
    identity_as_dict,
    peer_as_dict,
    print_identity,
    print_import,
    print_peer,
    print_requested,
)
from relay.cli.lazy import LaterCommand, LazyGroup
from relay.cli.options import InputFile, as_relay_option, config_option, output_option, write_named
from relay.cli.output import json_option, plain_console, print_json
from relay.cli.peer_domains import confirmed_domains, domain_option
from relay.config import Config, IdentitySettings
from relay.errors import ConfigError
from relay.files.rights import become
from relay.formats.cms import FURTHER_KEMS
from relay.formats.mailbox import fold_domain
from relay.identity import (
    MAX_DOCUMENT,
    VALID_DAYS,
    About,
    Import,
    Progress,
    create_identity,
    examine,
    expiring,
    lines_of,
    load_identity,
    load_peer_documents,
    make_passphrase,
    peer_document,
    pin,
    read_document,
    renew_identity,
    request_certificates,
    same_fingerprint,
    write_invitation,
)
from relay.levels import QUANTUM, SEALING
from relay.setup.asking import Prompter

COMMANDS = {
    "accept": LaterCommand(
        "invitations:accept",
        "Take in the site whose invitation, or peer document, is FILE; without FILE, paste the invitation.",
    ),
    "dkim": LaterCommand(
        "dkim:dkim",
        "The keys that sign sealed mail for this site's domains (DKIM), and what has to stand in the DNS.",
    ),
}


SENDS_ONLY = (
    "relay.toml has neither [incoming] nor [imap.*]; where another relay of this site opens mail, write it there"
)
NEEDS_KME = "relay.toml has no [kmes.*]"
"""Why peers may not use a level for us."""

levels_option = click.option(
    "--level",
    "levels",
    type=click.Choice(SEALING),
    multiple=True,
    help="A level that peers may use for us, as often as needed. [default: all that this relay can open]",
)


@click.group(cls=LazyGroup, later=COMMANDS)
def identity() -> None:
    """Who this site is to its peers: keys, certificates, and the documents that sites exchange.

    \b
    Two sites that want to seal for each other at levels pqc and rsa each do:
      qumail-relay identity new                    once: make keys and certificates
      qumail-relay identity invite -o alice.txt    write the invitation for the other site
      qumail-relay identity accept bob.txt         take the other site in
    and compare the words over the telephone before they answer yes. `export` and `import` do
    the same with the bare document, and its fingerprint in digits.
    """


@identity.command()
@config_option
@click.option(
    "--days",
    type=click.IntRange(2, 3650),
    default=VALID_DAYS,
    show_default=True,
    help="How long the certificates are valid.",
)
@click.option(
    "--renew",
    is_flag=True,
    help="Fresh encryption keys and certificates; signing keys stay, and older keys go on opening.",
)
@click.option("--csr", is_flag=True, help="Ask your organisation's CA for certificates, instead of an own CA.")
@click.option(
    "--kem",
    "kems",
    type=click.Choice(FURTHER_KEMS),
    multiple=True,
    help="Also keys for a KEM beside ML-KEM, as often as needed, also for an identity that is there; needs liboqs.",
)
def new(config_file: Path, days: int, renew: bool, csr: bool, kems: tuple[str, ...]) -> None:
    """Make this site's keys and certificates: hybrid ones for level pqc, and RSA-4096 twice.

    Hybrid are ML-KEM-1024 with ECDH, and ML-DSA-87 with ECDSA, both over P-384: one half alone opens and signs nothing.

    They are made in the directory that [identity] names, readable by its owner only, and encrypted where a
    passphrase file is set. If it is interrupted, run it again: it makes what is missing.

    Renew before the certificates end (`check` warns from 30 days before), or when the site gets another
    mail domain. Then export again, and have your peers import it.

    Without --csr the site has its own CA. Its private key, ca.key, is needed to renew only: keep it elsewhere if
    you like, and set ca_key_elsewhere = true in [identity]. With --csr your organisation's CA gets the .csr files.
    The KEM's key cannot sign a request: for it there is a .pub file, with a .cnf of its extensions. The CA has to
    know the composite keys of the IETF's drafts, which OpenSSL 3.5 does not. Until the certificates are there,
    nothing changes.

    With --kem peers can add a layer of another mathematical family to level pqc (`kem` in their policies), once
    they have imported our new document. Its keys need no certificate: the signed document carries them.
    """
    if csr and kems:
        raise click.UsageError("--kem needs no certificate: use it without --csr, once the certificates are there")
    config, files = _configured(config_file)
    domains, user = _domains(config), relays_user(config)
    if files.passphrase is not None and make_passphrase(files.passphrase, files.directory, user=user):
        click.echo(f"{files.passphrase}: made; keep it away from the backups of {files.directory}")
    become(user)
    about = About(name=config.site.name, domains=domains, kems=kems, valid_days=days, passphrase=files.passphrase)
    with _progress() as progress:
        about["progress"] = progress
        if csr:
            requested = request_certificates(files.directory, renew=renew, **about)
        else:
            made = (renew_identity if renew else create_identity)(files.directory, **about)
    if csr:
        print_requested(plain_console(), requested, files.directory)
        return
    print_identity(plain_console(), made, made.fingerprint_for(domains))
    click.echo("Next: `qumail-relay identity export`; send the document to your peers.")


@identity.command()
@as_relay_option
@json_option()
def show(config_file: Path, as_json: bool) -> None:
    """Show this site's certificates and fingerprint, and those of the pinned peers.

    The exit status is 1 where a certificate ends within 30 days or has ended.
    """
    config, files = _configured(config_file)
    ours = load_identity(files.directory, passphrase=files.passphrase)
    fingerprint = ours.fingerprint_for(_domains(config))
    peers = load_peer_documents(files.peers_directory)
    ending = expiring(ours, peers, datetime.now(UTC))
    if as_json:
        print_json(identity_as_dict(ours, fingerprint, peers, ending))
    else:
        out = plain_console()
        print_identity(out, ours, fingerprint)
        for peer in peers.values():
            print_peer(out, peer)
        for each in ending:
            out.print(str(each), style="bold red", soft_wrap=True)
    if ending:
        sys.exit(1)


@identity.command()
@config_option
@output_option
@levels_option
def export(config_file: Path, output: Path | None, levels: tuple[str, ...]) -> None:
    """Write this site's peer document: what others need to seal for us.

    It holds domains, SAE ID, KME groups, levels and certificates, signed with both our signing keys. Nothing in it is
    secret: send it by mail, and read the fingerprint to the other side over the telephone. Each one is newer
    than those before, so export again after every change here.
    """
    document = _own_document(config_file, levels)
    write_named(output, document)
    click.echo(f"Fingerprint: {read_document(document).fingerprint}", err=True)


@identity.command()
@config_option
@output_option
@levels_option
def invite(config_file: Path, output: Path | None, levels: tuple[str, ...]) -> None:
    """Write an invitation: this site's peer document, as text that a peer pastes into `setup` or `identity accept`.

    Nothing in it is secret: send it by mail. Nothing in it proves that it is yours either. The other site calls you,
    and you read them the words that stand in it, and that `identity show` shows here.
    """
    document = _own_document(config_file, levels)
    write_named(output, write_invitation(document).encode())
    click.echo(
        "Words to read out:\n" + "\n".join(f"  {line}" for line in lines_of(read_document(document).fingerprint)),
        err=True,
    )


def _own_document(config_file: Path, levels: tuple[str, ...]) -> bytes:
    """A fresh peer document of this site."""
    config, files = _configured(config_file)
    groups = tuple(dict.fromkeys(kme.group for kme in config.kmes.values()))
    can_open = tuple(level for level in SEALING if config.opens_mail and (groups or level not in QUANTUM))
    if more := [level for level in levels if level not in can_open]:
        raise ConfigError(
            f"--level {more[0]}: this relay cannot open it: {NEEDS_KME if config.opens_mail else SENDS_ONLY}"
        )
    if not can_open:
        click.echo(f"This site cannot receive, and the document says so: {SENDS_ONLY}.", err=True)
    with relay_rights(config):
        ours = load_identity(files.directory, passphrase=files.passphrase)
        return peer_document(
            files.directory,
            ours,
            name=config.site.name,
            domains=_domains(config),
            sae_id=config.site.sae_id,
            kme_groups=groups,
            levels=levels or can_open,
        )


@identity.command("import")
@as_relay_option
@click.option("--name", help="What to call the peer here, as policies do. [default: the site's own name]")
@domain_option
@click.option("--yes", is_flag=True, help="Do not ask. It trusts the writer of the file: use --fingerprint instead.")
@click.option("--fingerprint", "expected", help="Do not ask; import if this, heard over the telephone, is the file's.")
@click.option("--replace", is_flag=True, help="Take an older document, or one with another CA or signing key.")
@json_option("one JSON object; needs --yes or --fingerprint")
@click.argument("file", type=InputFile())
def import_document(
    config_file: Path,
    name: str | None,
    domains: tuple[str, ...],
    yes: bool,
    expected: str | None,
    replace: bool,
    as_json: bool,
    file: BinaryIO,
) -> None:
    """Pin the peer document FILE: from then on mail is sealed for that site, and opened from it.

    It shows the fingerprint and asks. Have somebody at the other site read theirs to you (`identity show`), over a
    telephone number that you did not take from the same mail. An attacker who can exchange the file can read your mail.
    Then it asks about each domain that the document names, or takes those alone that --domain expects. With --yes or
    --fingerprint, which ask nothing, --domain is needed. A later document may add no domain without that either.

    A document that is older than the pinned one, or has another CA or signing key, is refused without --replace.
    So is, always, a domain, a key or an identifier of a certificate that belongs to us or to another peer.
    """
    if as_json and not (yes or expected):
        raise click.UsageError("--json needs --yes or --fingerprint, for it cannot ask")
    config, _ = _configured(config_file)
    raw = file.read(MAX_DOCUMENT + 1)
    pinned = examine(config, raw, name=name, replace=replace, now=datetime.now(UTC))
    if not as_json:
        print_import(plain_console(), config, pinned)
    if expected is not None and not same_fingerprint(expected, pinned.peer.fingerprint):
        raise ConfigError(f"{file.name}: not imported, its fingerprint is another one: {pinned.peer.fingerprint}")
    if pinned.change != "same":
        if pinned.question and not (yes or expected):
            click.confirm(pinned.question, abort=True)
        confirmed = confirmed_domains(pinned, domains, Prompter(ask=not (yes or expected)))
        pin(config, raw, name=name, replace=replace, confirmed=confirmed, now=datetime.now(UTC))
    _print_pinned(pinned, as_json=as_json)


def _print_pinned(pinned: Import, *, as_json: bool) -> None:
    if as_json:
        print_json({"change": pinned.change, **peer_as_dict(pinned.peer)})
    elif pinned.change != "same":
        click.echo(f"Pinned as {pinned.peer.name}. A relay that serves takes it over within seconds.")


def _configured(config_file: Path) -> tuple[Config, IdentitySettings]:
    config = load(config_file)
    if config.identity is None:
        raise ConfigError(
            f"{config_file}: no [identity] table, which says where keys and peers' documents are kept; "
            "deploy/SETTINGS.md shows one"
        )
    return config, config.identity


def _domains(config: Config) -> list[str]:
    """The site's domains, folded as in certificates."""
    try:
        return [fold_domain(domain) for domain in config.site.domains]
    except ValueError as error:
        raise ConfigError(f"site.domains: {error}") from error


@contextmanager
def _progress() -> Iterator[Progress]:
    """Reports progress on standard error; on a terminal in a temporary line."""
    err = plain_console(stderr=True)
    with err.status("Making keys and certificates ...") as status:

        def progress(item: str) -> None:
            status.update(f"Making the key for {item} ...")
            if not err.is_terminal:
                click.echo(f"making the key for {item}", err=True)

        yield progress
