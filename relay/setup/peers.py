"""Takes a peer in: its document is pinned, and its domains get a first policy file where they have none.
What `identity accept` and `setup` do alike, so that two sites which do it end up configured alike.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime

from relay.config import Config
from relay.files.rights import UnixUser, acting_as
from relay.identity import Import, PeerCertificates, common_groups, examine, is_invitation, pin, read_invitation
from relay.identity.invitation import BadInvitation
from relay.levels import AES, PQC
from relay.setup.files import Owner, Written
from relay.setup.policies import policy_file, write_peer_policies


def document_in(raw: bytes) -> bytes:
    """The peer document in an invitation, or the bytes themselves where they are none. Raises BadInvitation."""
    if not is_invitation(raw):
        return raw
    try:
        return read_invitation(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadInvitation("the invitation was changed: it is not UTF-8") from error


def usual_levels(config: Config, peer: PeerCertificates | None) -> tuple[str, ...]:
    """The level of a first policy file: under quantum keys where we share some with the peer."""
    shared = config.kmes if peer is None else common_groups(config, peer)
    return (AES.name,) if shared else (PQC.name,)


def examined(config: Config, document: bytes, *, name: str | None = None, replace: bool = False) -> Import:
    """What taking this document would do. Raises ConfigError with what speaks against it."""
    examined_document = examine(config, document, name=name, replace=replace, now=datetime.now(UTC))
    for domain in examined_document.peer.domains:
        # Before it is pinned: a stranger names these, and must not come to write floors.toml or default.toml.
        policy_file(domain)
    return examined_document


def take_in(
    config: Config,
    document: bytes,
    *,
    name: str | None = None,
    replace: bool = False,
    levels: tuple[str, ...] = (),
    confirmed: Collection[str],
    user: UnixUser | None = None,
) -> tuple[Import, list[Written]]:
    """Pins it and writes policies, which the relay can read. Raises ConfigError, also for a domain not `confirmed`.

    Root pins it as `user`, whom the relay runs as, and writes policies as the owner of their directory.
    """
    with acting_as(user):
        pinned = pin(config, document, name=name, replace=replace, confirmed=confirmed, now=datetime.now(UTC))
    owner = Owner(user.uid, user.gid) if user is not None else Owner.myself()
    chosen = levels or usual_levels(config, pinned.peer)
    return pinned, write_peer_policies(config.policies.directory, pinned.peer.domains, chosen, owner)
