"""`qumail-relay identity invite` and `accept`: one block of text from site to site, and words to compare by telephone.
`accept` and `setup` share the code, so that both sites end up configured alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, get_args

import click

from relay.cli.as_relay import load, relays_user
from relay.cli.identity_tables import print_import
from relay.cli.options import InputFile, config_option
from relay.cli.output import plain_console
from relay.cli.peer_domains import NotConfirmed, confirmed_domains, domain_option
from relay.config import Config
from relay.errors import ConfigError
from relay.files.permissions import printable
from relay.files.rights import acting_as
from relay.identity import PeerCertificates, same_words
from relay.identity.peers import COMPARE
from relay.levels import SEALING
from relay.policy.file import Unprotected
from relay.setup.asking import Prompter, pasted_invitation, read_document
from relay.setup.files import Written
from relay.setup.peers import document_in, examined, lacks_policy, take_in
from relay.setup.questions import ask_unprotected

CALL = (
    "An attacker who exchanges the invitation on its way can read your mail. Call the other site, at a number that you "
    "know from elsewhere, and have somebody read the words of `qumail-relay identity show` to you."
)
CONFIRM = "Are these the words that the other site reads to you?"


@click.command()
@config_option
@click.option("--name", help="What to call the peer here, as policies do. [default: the site's own name]")
@click.option("--words", help="Do not ask; take the peer in if these words, heard over the telephone, are the file's.")
@domain_option
@click.option("--yes", is_flag=True, help="Do not ask. It trusts the writer of the file: use --words instead.")
@click.option("--replace", is_flag=True, help="Take an older document, or one with another CA or signing key.")
@click.option(
    "--level", "levels", type=click.Choice(SEALING), multiple=True, help="Levels of the policy file, in order."
)
@click.option(
    "--unprotected",
    type=click.Choice(get_args(Unprotected)),
    default="mark",
    show_default=True,
    help="What its policy file says of mail in the peer's name that arrives unsealed.",
)
@click.argument("file", type=InputFile(), required=False)
def accept(
    config_file: Path,
    name: str | None,
    words: str | None,
    domains: tuple[str, ...],
    yes: bool,
    replace: bool,
    levels: tuple[str, ...],
    unprotected: Unprotected,
    file: BinaryIO | None,
) -> None:
    """Take in the site whose invitation, or peer document, is FILE; without FILE, paste the invitation.

    It shows the words of the fingerprint and asks. Have somebody at the other site read theirs to you (`identity
    show`), over a telephone number that you did not take from the same mail. Anyone who can exchange the invitation can
    read your mail. It asks about each domain that the document names, or takes those alone that --domain expects. With
    --words or --yes, which ask nothing, --domain is needed. Then the document is pinned, as by `identity import`, and
    each of its domains that has no policy file gets one.
    """
    config = load(config_file)
    if file is None:
        click.echo("Paste the invitation, all of it:")
        try:
            raw = pasted_invitation()
        except ValueError as error:
            raise ConfigError(str(error)) from error
    else:
        raw = read_document(file)
    take_in_peer(
        config,
        document_in(raw),
        Prompter(ask=not yes),
        words=words,
        domains=domains,
        name=name,
        replace=replace,
        levels=levels,
        unprotected=unprotected,
    )


def take_in_peer(
    config: Config,
    document: bytes,
    asker: Prompter,
    *,
    words: str | None = None,
    domains: tuple[str, ...] = (),
    domain_option: str = "--domain",
    name: str | None = None,
    replace: bool = False,
    levels: tuple[str, ...] = (),
    unprotected: Unprotected | None = None,
) -> None:
    """Shows the peer and the words, has them compared, and takes the peer in. Raises ConfigError.

    `domains` are the expected ones, given by `domain_option`; without any, each is asked about. `unprotected` mail too
    is asked about if None.
    """
    user = relays_user(config)
    with acting_as(user):
        pinned = examined(config, document, name=name, replace=replace, levels=levels)
    print_import(plain_console(), config, pinned)
    refuse_other_words(words, pinned.peer)
    if pinned.question and words is None:
        why, question = "It follows the document that is pinned.", pinned.question
        if question == COMPARE:
            why, question = CALL, CONFIRM
        if not asker.confirm(why, question, unasked=True):
            raise NotConfirmed("not taken in: the words were not confirmed")
    confirmed: tuple[str, ...] = ()
    if pinned.change != "same":
        only_asked = Prompter(ask=asker.asks and words is None)
        confirmed = confirmed_domains(pinned, domains, only_asked, option=domain_option)
    if unprotected is None and config.opens_mail and lacks_policy(config, pinned.peer):
        unprotected = ask_unprotected(asker)
    pinned, policies = take_in(
        config,
        document,
        name=name,
        replace=replace,
        levels=levels,
        unprotected=unprotected or "mark",
        confirmed=confirmed,
        user=user,
    )
    if pinned.change != "same":
        click.echo(f"Pinned as {pinned.peer.name}. A relay that serves takes it over within seconds.")
    if pinned.change == "new" and config.incoming is not None:
        where = "is in quarantine: `qumail-relay quarantine list`, then `quarantine release`"
        click.echo(f"What it sealed for this site before {where}.")
    show_written(policies)


def refuse_other_words(words: str | None, peer: PeerCertificates) -> None:
    """Raises ConfigError if the words heard are not this document's."""
    if words is not None and not same_words(words, peer.fingerprint):
        raise ConfigError("not taken in: these are not the words of this invitation. Somebody may have exchanged it")


def show_written(written: Iterable[Written]) -> None:
    """Prints the files that were written, or kept although they differ."""
    for each in written:
        if each.outcome != "there already":
            click.echo(printable(f"{each.path}: {each.outcome}"))
