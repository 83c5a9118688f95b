"""Confirmation of a peer's domains by the administrator here, one by one or as a list of expected domains.
Neither words nor fingerprint confirm a domain, since the peer itself names it (relay/identity/peers.py).
"""

from __future__ import annotations

from collections.abc import Collection

import click

from relay.config.values import parse_domain
from relay.errors import ConfigError
from relay.formats.mailbox import fold_domain
from relay.identity import Import, PeerCertificates
from relay.setup.asking import Prompter

MAX_ASKED = 20
"""Maximum number of domains that are asked about; more must be given as options."""
WHY = (
    "The document names these domains itself. Mail for them will be sealed so that this site alone can read it. Say "
    "yes to those that you know to be theirs, and to no other."
)

domain_option = click.option(
    "--domain",
    "domains",
    multiple=True,
    help="A mail domain that you expect of the peer, as often as needed: a document that names another is refused.",
)


class NotConfirmed(ConfigError):
    """A person has said that something about a peer is not as they know it."""


def confirmed_domains(
    pinned: Import, expected: tuple[str, ...], asker: Prompter, *, option: str = "--domain"
) -> tuple[str, ...]:
    """Returns the document's domains that are confirmed now: all that need confirmation.

    Raises NotConfirmed; ConfigError if nobody is asked and no domain is expected; UsageError for an invalid domain.
    """
    if domains := refuse_other_domains(pinned.peer, pinned.added, expected):
        return domains
    if not pinned.added:
        return ()
    if not asker.asks or len(pinned.added) > MAX_ASKED:
        named = ", ".join(pinned.added)
        raise ConfigError(f"not taken in: it names {named}; say which domains you expect, {option} for each")
    why = WHY
    for domain in pinned.added:
        if not asker.confirm(why, f"Is {domain} a mail domain of {pinned.peer.name}?", unasked=False):
            raise NotConfirmed(f"not taken in: {domain} was not confirmed")
        why = ""
    return pinned.added


def refuse_other_domains(peer: PeerCertificates, added: Collection[str], expected: tuple[str, ...]) -> tuple[str, ...]:
    """The expected domains, if any, which must include those of `added`.

    Raises NotConfirmed if the document names others, ConfigError if it lacks one, UsageError for an invalid domain.
    """
    domains = tuple(map(_folded, expected))
    if absent := [domain for domain in domains if domain not in peer.domains]:
        raise ConfigError(f"not taken in: the document does not name {absent[0]}, which is expected")
    if domains and (more := [domain for domain in added if domain not in domains]):
        raise NotConfirmed(f"not taken in: the document also names {', '.join(more)}, which is not expected")
    return domains


def _folded(domain: str) -> str:
    try:
        return fold_domain(parse_domain(domain))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
