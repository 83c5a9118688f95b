"""Takes a peer in: pins its document, and writes a first policy file for its domains that have none.
`identity accept` and `setup` share this code, so that two sites end up configured alike.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from datetime import UTC, datetime

from relay.config import Config
from relay.errors import ConfigError
from relay.files.rights import UnixUser, acting_as
from relay.identity import Import, PeerCertificates, examine, is_invitation, pin, read_invitation
from relay.identity.invitation import BadInvitation
from relay.identity.peers import joined
from relay.levels import AES, LEVELS, ON_TOP, OTP, PQC, RSA
from relay.policy.file import Unprotected
from relay.setup.files import Owner, Written
from relay.setup.policies import peer_policy, policy_file, write_peer_policies

_USUAL = (AES.name, PQC.name, RSA.name, OTP.name)
"""The level of a first policy file is the first of these that both sites have: no default uses pads."""


def document_in(raw: bytes) -> bytes:
    """The peer document in an invitation, or the bytes unchanged if they are none. Raises BadInvitation."""
    if not is_invitation(raw):
        return raw
    try:
        return read_invitation(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadInvitation("the invitation was changed: it is not UTF-8") from error


def possible_levels(config: Config, peer: PeerCertificates) -> tuple[str, ...]:
    """The levels of both sites: the peer opens them, and we share the quantum keys that they need."""
    groups = joined(config, {peer.name: peer}).peers[peer.name].kme_groups
    return tuple(
        level.name
        for level in LEVELS
        if level.name in peer.levels and (level.use is None or any(config.serves(group, level.use) for group in groups))
    )


def examined(
    config: Config, document: bytes, *, name: str | None = None, replace: bool = False, levels: tuple[str, ...] = ()
) -> Import:
    """The effect of taking this document in. Raises ConfigError with the obstacle, also for `levels`."""
    examined_document = examine(config, document, name=name, replace=replace, now=datetime.now(UTC))
    peer = examined_document.peer
    for domain in peer.domains:
        # Before the document is pinned: a stranger chose the names, which must not be floors.toml or default.toml.
        policy_file(domain)
    possible = possible_levels(config, peer)
    if never := [level for level in levels if level not in possible]:
        cause = peer.not_opened(never[0]) or f"no KME group is shared with peer {peer.name!r} for it"
        raise ConfigError(f"not taken in: --level {never[0]}: {cause}")
    return examined_document


def lacks_policy(config: Config, peer: PeerCertificates) -> bool:
    """Whether one of the peer's domains needs a first policy file."""
    return not all(os.path.lexists(config.policies.directory / policy_file(domain)) for domain in peer.domains)


def take_in(
    config: Config,
    document: bytes,
    *,
    name: str | None = None,
    replace: bool = False,
    levels: tuple[str, ...] = (),
    unprotected: Unprotected,
    confirmed: Collection[str],
    user: UnixUser | None = None,
) -> tuple[Import, list[Written]]:
    """Pins the document and writes policies that the relay can read.

    Root pins as `user`, the relay's, and writes policies as the owner of their directory. Raises ConfigError, also for
    a domain not `confirmed`.
    """
    with acting_as(user):
        pinned = pin(config, document, name=name, replace=replace, confirmed=confirmed, now=datetime.now(UTC))
    owner = Owner(user.uid, user.gid) if user is not None else Owner.myself()
    possible = possible_levels(config, pinned.peer)
    text = peer_policy(
        levels or [level for level in _USUAL if level in possible][:1],
        on_top=ON_TOP in possible,
        unprotected=unprotected if config.opens_mail else None,
    )
    return pinned, write_peer_policies(config.policies.directory, pinned.peer.domains, text, owner)
