"""`qumail-relay setup`: sets up a working site after a few questions, and keeps what exists.
Exit status 0: all was written and is well; 1: a failure, or a failed check at the end; 2: wrong usage.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import click

from relay.cli import units
from relay.cli.as_relay import become_owner_of_settings, become_the_relays_user, load, relays_user
from relay.cli.credentials import give, load as load_credentials, provide
from relay.cli.invitations import refuse_other_words, show_written, take_in_peer
from relay.cli.logs import configure_logging
from relay.cli.peer_domains import NotConfirmed, refuse_other_domains
from relay.cli.setup_again import another_answer, as_it_is, integration_of, secret_place
from relay.cli.setup_answers import answers_of, look_at_kme, look_at_postfix
from relay.cli.setup_ports import hold_ports, hold_ports_by_default
from relay.cli.setup_postfix import BesidePostfix, as_before, beside_postfix, last_line, put_back
from relay.config import Config, LogSettings
from relay.config.ports import PORT_BASE
from relay.errors import ConfigError
from relay.files.commands import command
from relay.files.rights import UnixUser, acting_as
from relay.identity import read_document
from relay.levels import SEALING
from relay.policy.file import Unprotected
from relay.policy.names import printable
from relay.setup.answers import Everybody, Integration, SecretPlace, SitePaths
from relay.setup.asking import Prompter, read_file
from relay.setup.backups import changed_last
from relay.setup.files import Owner, make_directory
from relay.setup.peers import document_in
from relay.setup.questions import NONE
from relay.setup.site import make_state, write_configuration

USER = "qumail-relay"
"""Default name of the relay's user, if root sets it up."""
HOLDS_RATHER = "mail that cannot be sealed waits, and without the relay it leaves in clear"
CHILD_LIMIT_S = 900.0
"""Time limit of a command that setup starts, in seconds."""


@click.command()
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    default=units.DEFAULT_CONFIG,
    envvar="QUMAIL_RELAY_CONFIG",
    show_default=True,
    show_envvar=True,
    help="Where relay.toml shall be.",
)
@click.option("--state", type=click.Path(path_type=Path), help="The relay's own files. [default: as for the config]")
@click.option(
    "--yes",
    is_flag=True,
    help="Ask nothing: flags and defaults answer. Trusts --peer, which needs --peer-domain, unless --words is given.",
)
@click.option("--domain", "domains", multiple=True, help="A mail domain of this site, as often as needed.")
@click.option("--name", help="The site's name. [default: from the first domain]")
@click.option("--peer", type=click.Path(path_type=Path), help="A file with a peer's invitation or document.")
@click.option("--words", help="The peer's words, as heard over the telephone; another peer is refused.")
@click.option(
    "--peer-domain",
    "peer_domains",
    multiple=True,
    help="A mail domain that you expect of the peer, as often as needed: a peer that names another is refused.",
)
@click.option(
    "--kme",
    help="https://host:port; `none`; `development`: those of `qumail-relay kme`, NOT quantum. No default.",
)
@click.option("--kme-ca", type=click.Path(path_type=Path), help="The CA of the KME's certificate (PEM).")
@click.option("--kme-certificate", type=click.Path(path_type=Path), help="Our certificate at the KME (PEM).")
@click.option("--kme-key", type=click.Path(path_type=Path), help="Its private key (PEM).")
@click.option("--kme-group", help="The group's name at both sites. [default: the peer's, else `default`]")
@click.option("--sae-id", help="Under what name our KME knows this relay.")
@click.option("--integration", type=click.Choice(get_args(Integration)), help="How mail comes to the relay.")
@click.option("--next-hop", help="With --integration smarthost: the mail server that takes sealed mail.")
@click.option("--everybody", type=click.Choice(get_args(Everybody)), help="Mail for those who are no peers.")
@click.option(
    "--postmaster",
    multiple=True,
    help="Who is notified of alarms by mail, as often as needed, or `none`. [default: postmaster@ the first domain]",
)
@click.option(
    "--level", "levels", type=click.Choice(SEALING), multiple=True, help="Levels for mail to peers, in order."
)
@click.option(
    "--unprotected",
    type=click.Choice(get_args(Unprotected)),
    help="What the peer's policy file says of mail in its name that arrives unsealed. [default: mark]",
)
@click.option(
    "--port-base", type=click.IntRange(1020, 65500), help=f"Ports + 4 to 18. [default: {PORT_BASE}, or as before]"
)
@click.option("--postfix", help="The directory of the Postfix beside the relay, or `none`.")
@click.option("--postfix-service", help="Where mail from outside arrives, as smtp/inet in master.cf.")
@click.option(
    "--secret",
    type=click.Choice(get_args(SecretPlace)),
    help="Site secret and passphrase of the private keys: by systemd's credentials, or on the disk. [default: where a "
    "TPM2 is, credential]",
)
@click.option("--apply/--no-apply", "apply_postfix", default=None, help="Change Postfix without asking, or not at all.")
@click.option("--user", envvar="QUMAIL_RELAY_USER", help=f"As whom it runs, where root sets it up. [default: {USER}]")
@click.option(
    "--replace",
    is_flag=True,
    help="Write relay.toml again, with what flags say otherwise; the old one is kept beside it.",
)
@click.option("--undo", "undo_postfix", is_flag=True, help="Put Postfix back as it was before the last change.")
@click.option(
    "--hold-ports",
    "only_hold_ports",
    is_flag=True,
    help="Only have systemd hold the ports of relay.toml, as after an edit there, and give the relay its credentials.",
)
@click.option("--keys", is_flag=True, hidden=True, help="Only make secret, keys and certificates, as the relay's user.")
@click.option("--test", is_flag=True, help="Only seal a test message for each peer; nothing leaves.")
def setup(
    config_file: Path, *, undo_postfix: bool, only_hold_ports: bool, keys: bool, test: bool, **flags: Any
) -> None:
    """Set this site up: relay.toml, first policies, keys and certificates, and Postfix beside it.

    It asks six questions. A real KME adds two, or four without certificate and key beside its CA. A TPM2 adds one,
    the other site's invitation three. Each has a flag. --yes takes the defaults, but for --kme, which has none. A
    relay.toml that is there counts as the answers; run it again as often as you like. It looks at the KME, seals a test
    message, changes Postfix once that can be sealed, and ends with
    `check`.
    """
    configure_logging(LogSettings(level="error"))
    places = SitePaths.beside(config_file)
    if flags["state"]:
        places = SitePaths(places.config_file, flags["state"].absolute())
    become_owner_of_settings(places.config_file)
    if keys or test:
        become_the_relays_user(places.config_file)
    if undo_postfix:
        put_back(places)
    elif only_hold_ports:
        config = load(places.config_file)
        show_written(load_credentials(config, places.config_file))
        click.echo(hold_ports(config, places.config_file))
    elif keys:
        _make_keys(load(places.config_file))
    elif test:
        _rehearse(load(places.config_file))
    else:
        _set_up(places, Prompter(ask=not flags["yes"]), flags)


def _set_up(places: SitePaths, asker: Prompter, flags: dict[str, Any]) -> None:
    owner = _owner(flags["user"])
    document = _document(flags["peer"])
    answered = flags["replace"] or not places.config_file.exists()
    if answered and document is not None:
        _refuse_another_peer(document, flags)
    former, said_before = None, b""
    if answered:
        with suppress(ConfigError):  # a wrong relay.toml has no answers
            if places.config_file.exists():
                former = load(places.config_file)
                said_before = places.config_file.read_bytes()
                flags = as_it_is(former, flags, places.directory)
        answers, document = answers_of(asker, flags, document, places.config_file)
        if former is not None and answers.credentials is None and secret_place(former) == "credential":
            raise click.UsageError(
                "--secret file: a credential becomes a file by hand: deploy/OPERATING.md, Credentials"
            )
        look_at_kme(answers, document, former)
        if answers.postfix is None:
            flags = {**flags, "postfix": NONE}  # answered, so it is not asked again
        look_at_postfix(answers, places, flags)
        show_written(write_configuration(answers, places, owner, replace=flags["replace"]))
    elif other := another_answer(load(places.config_file), flags):
        raise click.UsageError(
            f"{places.config_file} says otherwise: --{other} needs --replace, which keeps the old one beside it"
        )
    else:
        click.echo(f"{places.config_file}: there already, and used as it is (--replace writes it anew)")
    config = load(places.config_file)
    owner = _whose_state(config, owner, flags["user"])
    _make_state(config, places, owner, former)
    if document is not None:
        _take_in(config, document, asker, flags)
    click.echo("\nA test message:")
    sealed = _as_relay(owner, "setup", "--test", "--config", str(places.config_file))
    joined_before = changed_last(places.directory) is not None
    if joined_before and not sealed:
        click.echo(f"Postfix is put beside the relay nevertheless, as it was before: {HOLDS_RATHER}.")
    if sealed or joined_before:
        _hold_ports(config, places)
        beside = beside_postfix(config, places, asker, flags)
        if former is not None and beside.declined and integration_of(former) != integration_of(config):
            config, beside = former, as_before(places, said_before, beside)
            _hold_ports(config, places)
    else:
        # A relay that seals nothing, or does not start, would make all mail wait.
        beside = BesidePostfix(None)
        again = command("qumail-relay", "setup", "--config", places.config_file)
        click.echo(f"Postfix stays as it is. Fix that, then: {again}")
    click.echo()
    # The next hop of a smarthost exists already.
    looks = beside.runs or integration_of(config) == "smarthost"
    without = ("--before-start",) if looks else ("--before-start", "--no-next-hops")
    well = _as_relay(owner, "check", "--config", str(places.config_file), *without)
    if last := last_line(config, places, owner, beside, well=well):
        click.echo(f"\n{last}")
    # What check finds on an existing site, such as mail in quarantine, is no failure of this run.
    if not sealed or (answered and not well):
        sys.exit(1)


def _make_state(config: Config, places: SitePaths, owner: Owner, former: Config | None) -> None:
    """Makes the relay's directory, then credentials, then secret and keys as the relay's user. Raises ConfigError."""
    show_written([make_directory(config.own_directory, owner, state=True)])
    if not os.geteuid():
        show_written(provide(config, places.config_file, former))
        give(config, UnixUser.numbered(owner.uid, owner.gid) if owner.is_another else None)
    if not owner.is_another:
        _make_keys(config)
    elif not _as_relay(owner, "setup", "--keys", "--config", str(places.config_file)):
        sys.exit(1)


def _refuse_another_peer(document: bytes, flags: dict[str, Any]) -> None:
    """Runs before anything is written. Raises UsageError and ConfigError."""
    peer = read_document(document)
    if (flags["yes"] or flags["words"]) and not flags["peer_domains"]:
        # Nobody is asked about the domains, and a peer must not choose them itself.
        named = ", ".join(peer.domains)
        raise click.UsageError(f"--peer names {named}: say which domains you expect, --peer-domain for each")
    refuse_other_words(flags["words"], peer)
    refuse_other_domains(peer, peer.domains, flags["peer_domains"])


def _hold_ports(config: Config, places: SitePaths) -> None:
    """Runs before Postfix uses the ports: until the relay starts, a local user could take them. Raises ConfigError."""
    if said := hold_ports_by_default(config, places.config_file):
        click.echo(said)


def _take_in(config: Config, document: bytes, asker: Prompter, flags: dict[str, Any]) -> None:
    try:
        take_in_peer(
            config,
            document,
            asker,
            words=flags["words"],
            domains=flags["peer_domains"],
            domain_option="--peer-domain",
            levels=flags["levels"],
            unprotected=flags["unprotected"],
        )
    except NotConfirmed as error:
        click.echo(f"{error}. With the right invitation: qumail-relay identity accept")


def _owner(user: str | None) -> Owner:
    if os.geteuid():
        return Owner.myself()
    return Owner.named(user or USER)


def _whose_state(config: Config, owner: Owner, named: str | None) -> Owner:
    """The owner of an existing state. Raises ConfigError if `--user` names another."""
    user = relays_user(config)
    if user is None or user.uid == owner.uid:
        return owner
    if named:
        raise ConfigError(f"{config.state_directory}: belongs to user {user.name}, and --user says {named}")
    return Owner(user.uid, user.gid)


def _document(path: Path | None) -> bytes | None:
    return document_in(read_file(path)) if path is not None else None


def _rehearse(config: Config) -> None:
    from relay.setup.rehearsal import rehearse  # imports all that seals, which the questions do not need

    failed = False
    for to, became, wrong in asyncio.run(rehearse(config)):
        click.echo(printable(f"{'WRONG' if wrong else 'ok   '}  to {to}: {wrong or became}"))
        failed = failed or bool(wrong)
    if failed:
        sys.exit(1)


def _make_keys(config: Config) -> None:
    show_written(make_state(config, lambda name: click.echo(f"making the key for {name} ...")))


def _as_relay(owner: Owner, *arguments: str) -> bool:
    """Runs another command as the relay's user, so that root owns none of its files; returns whether it succeeded.

    Root would not be safe in that user's directories, which may contain links. The command starts as root, forbids
    tracing, and only then becomes that user. Otherwise the user's processes could trace its start and take over its
    standard output. It has no terminal, and a time limit because that user may stop it. Raises ConfigError.
    """
    words = [sys.executable, "-I" if sys.flags.isolated else "-P", "-m", "relay"]
    if owner.is_another:
        _refuse_closed_python(owner)
        words += ["--as-user", str(owner.uid), str(owner.gid)]
    with subprocess.Popen(  # noqa: S603 - ourselves
        [*words, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True, encoding="utf-8", errors="replace", cwd="/" if owner.is_another else None,
    ) as child:  # fmt: skip
        assert child.stdout is not None  # noqa: S101 - it is a pipe
        limit = threading.Timer(CHILD_LIMIT_S, child.kill)
        limit.daemon = True
        limit.start()
        try:
            for line in child.stdout:
                click.echo(printable(line.removesuffix("\n")))
            child.wait()
        finally:
            limit.cancel()
    if child.returncode < 0:
        click.echo(f"{command('qumail-relay', *arguments)}: ended by signal {-child.returncode}")
    return not child.returncode


def _refuse_closed_python(owner: Owner) -> None:
    """Raises ConfigError if the relay's user cannot run this Python."""
    with acting_as(UnixUser.numbered(owner.uid, owner.gid)):
        if not os.access(sys.executable, os.X_OK, effective_ids=True):
            raise ConfigError(
                f"{owner.name} cannot run {sys.executable}: install the relay where that user can "
                "(deploy/install /opt/qumail-relay)"
            )
