"""The journey in: recognise a sealed mail, get its keys, open, verify, hand the original on.
Standard: a key taken from the KME is stored before it is used; nothing is handed on that was not verified.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import structlog

from relay import mime
from relay.config import Config, Direction
from relay.errors import BadStructure, KeyNotFound, UnknownPeer
from relay.forward import NextHop
from relay.keys import Key, KeyReference, KeySource
from relay.levels import Level
from relay.mail import Mail, domain_of
from relay.store import USED_KEEP_FOR_S, ReceivedKeys

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Opened:
    """The original message, octet for octet as it was sealed, and the keys that were used."""

    original: bytes = field(repr=False)
    level: str
    keys: tuple[KeyReference, ...]


@dataclass(frozen=True, slots=True)
class Opener:
    """Opens sealed messages with the site's keys; one value for the life of the relay."""

    config: Config
    level: Level
    sources: Mapping[str, KeySource]
    received: ReceivedKeys

    async def open(self, message: bytes, sender: str = "") -> Opened | None:
        """The original, or None where `message` is not sealed for us: ordinary mail, or sealed by others.

        `sender` is the envelope sender, which tells the peer where the sealed message does not say it.
        Raises KeyUnavailable, BadStructure, BadTag or UnknownPeer.
        """
        references = self._recognise(message, sender)
        if not references:
            return None
        keys = await self._keys(references)
        payload = await self.level.open(mime.sealed_content(message), keys)
        used = tuple(reference for reference in references if reference.key_ID in keys)
        return Opened(mime.unwrap_payload(payload), self.level.name, used)

    async def done(self, opened: Opened) -> None:
        """The mail was delivered: its keys are kept only for as long as copies of it may still come."""
        for (group, master), references in _by_origin(opened.keys).items():
            await self.received.mark_used(
                group, master, [each.key_ID for each in references], USED_KEEP_FOR_S
            )

    def _recognise(self, message: bytes, sender: str) -> tuple[KeyReference, ...]:
        """The keys that a message names, if it is sealed for us; nothing for ordinary mail."""
        if not mime.is_sealed(message):
            return ()
        by_domain = self.config.peer_by_domain(domain_of(sender))
        peer_sae = by_domain[1].sae_id if by_domain else None
        try:
            references = self.level.references(mime.sealed_content(message))
        except BadStructure:
            if peer_sae is not None:
                raise
            return ()
        return tuple(
            self._completed(reference, reference.master_sae or peer_sae or "")
            for reference in references
            if reference.master_sae or peer_sae
        )

    def _completed(self, reference: KeyReference, master_sae: str) -> KeyReference:
        """The reference with both SAEs and the KME group, after a check against the configured peers."""
        known = self.config.peer_by_sae(master_sae)
        if known is None:
            raise UnknownPeer(
                f"key {reference.key_ID}: sealed by SAE {master_sae!r}, which is no peer of ours"
            )
        if reference.slave_sae not in (None, self.config.site.sae_id):
            raise UnknownPeer(
                f"key {reference.key_ID}: sealed for SAE {reference.slave_sae!r}, which we are not"
            )
        name, peer = known
        group = reference.kme_group or peer.kme_group
        if group != peer.kme_group or group not in self.sources:
            raise UnknownPeer(f"key {reference.key_ID}: KME group {group!r} is not shared with peer {name!r}")
        return replace(reference, master_sae=master_sae, slave_sae=self.config.site.sae_id, kme_group=group)

    async def _keys(self, references: Iterable[KeyReference]) -> dict[str, Key]:
        """The keys at hand, else from the KME; what came from there is stored before anything else."""
        keys: dict[str, Key] = {}
        for (group, master), wanted in _by_origin(references).items():
            key_IDs = [reference.key_ID for reference in wanted]
            stored = await self.received.get(group, master, key_IDs)
            missing = [key_ID for key_ID in key_IDs if key_ID not in stored]
            if missing:
                fetched = await self.sources[group].fetch(master, missing)
                if fetched:
                    await self.received.put(group, master, {key.key_ID: key.key for key in fetched.values()})
                stored |= {key_ID: key.key for key_ID, key in fetched.items()}
            keys |= {key_ID: Key(key_ID, octets) for key_ID, octets in stored.items()}
        if not keys:
            named = ", ".join(reference.key_ID for reference in references)
            raise KeyNotFound(f"no KME knows key {named}: not synchronised yet, expired, or never issued")
        return keys


@dataclass(frozen=True, slots=True)
class Incoming:
    """What the recipe works with; one value for the life of the relay."""

    direction: Direction
    opener: Opener
    next_hop: NextHop

    def check_recipient(self, sender: str, recipient: str) -> None:
        """Every recipient is taken: the mail server that hands us mail has already chosen them."""

    async def process(self, mail: Mail) -> None:
        """Opens the mail where it is sealed for us, and hands it on. Raises TryLater or Refuse."""
        mime.check_carriable(mail.message, self.direction.max_hops)
        opened = await self.opener.open(mail.message, mail.envelope.sender)
        if opened is None:
            await self.next_hop.deliver(mail.with_message(mail.trace + mail.message))
            log.info("passed_unopened", recipients=len(mail.envelope.recipients), octets=len(mail.message))
            return
        mime.check_carriable(opened.original, self.direction.max_hops)
        answer = await self.next_hop.deliver(mail.with_message(opened.original))
        await self.opener.done(opened)
        log.info(
            "opened_and_sent",
            protection=opened.level,
            key_IDs=[reference.key_ID for reference in opened.keys],
            recipients=len(mail.envelope.recipients),
            octets=len(opened.original),
            next_hop=str(self.next_hop.address),
            answer=answer,
        )


def _by_origin(references: Iterable[KeyReference]) -> dict[tuple[str, str], list[KeyReference]]:
    """References by (KME group, master SAE), which is how a key_ID is unique."""
    sorted_out: defaultdict[tuple[str, str], list[KeyReference]] = defaultdict(list)
    for reference in references:
        sorted_out[reference.kme_group or "", reference.master_sae or ""].append(reference)
    return dict(sorted_out)
