"""Writes the outcomes of a mail to the audit record: at each attempt, one record for each group of recipients.
Standard: deploy/AUDIT.md; a group shares copy, policy, outcome and cause.

A mail is announced right before it leaves, and recorded at the end of the attempt. Nothing here blocks.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import accumulate
from json.encoder import encode_basestring_ascii as _text
from time import time_ns
from typing import Literal, NamedTuple

from relay.audit.entries import as_time, in_lines, now
from relay.audit.writing import Announced, Audit
from relay.errors import RECIPIENT
from relay.journey.delivery import Delivery
from relay.journey.opening import Opened
from relay.journey.plan import Planned
from relay.journey.sealing import SealedCopy
from relay.keys import KeyReference
from relay.levels import PLAINTEXT, SMIME
from relay.mail import Mail, Recipient

MAX_KEYS, KEYS_OCTETS = 1000, 256 * 1024
"""Maximum number and total size of key_IDs in a record; beyond that, their number and a digest are written."""
_QUEUED_AS = re.compile(r"queued as ([0-9A-Za-z]{1,64})\b")


Outcome = Literal["delivered", "inside", "held", "refused", "quarantined", "consumed", "repeated"]
"""`inside`: in clear to one of our domains. `consumed`: for the canary's address. `repeated`: the recipient already has
the mail. After a kill, the audit record may also have "unknown" (relay/audit/recovery.py)."""
NONE = "none"
"""Placeholder for the level of a mail that was not sealed or opened."""


class Fate(NamedTuple):
    """The outcome that several recipients share, and the `reason` if they did not get the mail, or "".

    `peer` is "" for mail in clear to or from other sites. For mail that could not be opened it is the claimed peer, for
    mail that could not be sealed the peer of the recipient's domain.
    """

    peer: str
    level: str
    outcome: Outcome
    reason: str = ""


class DecidingPolicy(NamedTuple):
    """The policy that decided, its version, and the levels that it lists."""

    where: str = ""
    version: str = ""
    listed: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class CopyRecord:
    """Recipients who share a copy and a policy: the first JSON members of their records, and their announcement."""

    members: str
    announced: Announced | None = None


class Trail:
    """Writes the records of one direction."""

    def __init__(self, direction: str, audit: Audit | None = None, algorithms: Mapping[str, str] | None = None) -> None:
        """Without an `audit` nothing is written. `algorithms` are those of each layer."""
        self.audit = audit if audit is not None and audit.every_mail else None
        self._direction = direction
        self._algorithms = algorithms or {}
        self.shared: Callable[[str, str, str, str, DecidingPolicy], str] = lru_cache(maxsize=1000)(self._shared_members)
        """Cached JSON members that many mails share: listener, peer, level, KME group, policy."""

    def _shared_members(self, listener: str, peer: str, level: str, kme_group: str, policy: DecidingPolicy) -> str:
        algorithms = "; ".join([self._algorithms.get(layer, "") for layer in level.split("+")])
        return (
            f'"direction": "{self._direction}", "listener": "{listener}", "peer": {_text(peer)}, '
            f'"level": {_text(level)}, '
            f'"algorithms": {_text(algorithms)}, "kme_group": {_text(kme_group)}, "policy": {_text(policy.where)}, '
            f'"policy_version": {_text(policy.version)}, "listed": {_list(policy.listed)}'
        )


@dataclass(slots=True)
class AttemptRecord:
    """One delivery attempt: what is about to leave, and its outcome. `end` must be called in any case.

    `delivery` is None until the delivery has begun.
    """

    trail: Trail
    mail: Mail
    delivery: Delivery | None = None
    _of: dict[str, CopyRecord] = field(default_factory=dict, init=False)

    def begins(self, delivery: Delivery) -> None:
        """Sets the delivery of this attempt."""
        self.delivery, delivery.witness = delivery, self

    def leaves(self, delivery: Delivery, recipients: Sequence[Recipient], size: int, copy: SealedCopy | None) -> None:
        """Announces mail; must be called before each end of the content.

        Raises StoreUnavailable; then the mail must not leave, since it would have no record.
        """
        audit, of = self.trail.audit, self._of
        if audit is None or (of and recipients[0].mailbox in of):
            return
        quoted, (first, at) = audit.addresses.quoted, audit.chain.place
        arrived = SMIME if recipients[0].mailbox in delivery.smime else PLAINTEXT
        begin = f'{{"when": {time_ns()}, "behind": [{first}, {at}]'
        for policy, mailboxes in _by_policy(recipients, copy).items():
            members = self._members(audit, copy, policy, size, arrived=arrived)
            addresses = ", ".join(map(quoted, mailboxes))
            names = '", "'.join(map(bytes.hex, delivery.names(mailboxes)))
            said = f'{begin}, "recipients": [{addresses}], "names": ["{names}"], {members}}}'
            part = CopyRecord(members, audit.announce(said.encode("ascii")))
            for mailbox in mailboxes:
                of[mailbox] = part

    def end(self, fates: Mapping[str, Fate], error: BaseException | None = None) -> None:
        """Ends the attempt, with these fates by mailbox; `error` applies to those without any other outcome."""
        audit, of, delivery = self.trail.audit, self._of, self.delivery
        if audit is None:
            return
        if len(of) < len(fates):
            self._complete(audit, fates)
        groups: dict[tuple[CopyRecord, Fate, str, tuple[str, str]], list[str]] = {}
        for mailbox, fate in fates.items():
            said, cause = _NOTHING, ""
            if fate.reason:
                cause = _cause(audit, mailbox, delivery, error)
            elif delivery is not None:
                said = delivery.said.get(mailbox, _NOTHING)
            groups.setdefault((of[mailbox], fate, cause, said), []).append(mailbox)
        when, quoted = time_ns(), audit.addresses.quoted
        for (part, fate, cause, said), mailboxes in groups.items():
            for some in in_lines(mailboxes) if len(mailboxes) > 1 else [mailboxes]:
                audit.note(partial(_record, when, part.members, fate, cause, said, quoted, some), part.announced)
                part.announced = None

    def _complete(self, audit: Audit, fates: Mapping[str, Fate]) -> None:
        """Adds the members of recipients for whom nothing was announced."""
        delivery = self.delivery
        parts: dict[tuple[str, str, DecidingPolicy], CopyRecord] = {}
        for copy in delivery.copies if delivery is not None else ():
            rest = [each for each in copy.recipients if each.mailbox not in self._of]
            for policy, mailboxes in _by_policy(rest, copy).items():
                self._of |= dict.fromkeys(mailboxes, CopyRecord(self._members(audit, copy, policy, 0)))
        for mailbox, fate in fates.items():
            if mailbox not in self._of:
                planned = delivery.without.get(mailbox) if delivery is not None else None
                policy = _policy(planned) if planned is not None else NO_POLICY
                key = fate.peer, fate.level, policy
                if key not in parts:
                    parts[key] = CopyRecord(self._members(audit, None, policy, 0, fate))
                self._of[mailbox] = parts[key]

    def _members(
        self,
        audit: Audit,
        copy: SealedCopy | None,
        policy: DecidingPolicy,
        size: int,
        fate: Fate | None = None,
        arrived: str = PLAINTEXT,
    ) -> str:
        """The JSON members known before delivery. Formatted by hand: json.dumps takes four times as long."""
        mail = self.mail
        opened = self.delivery.opened if self.delivery is not None else None
        keys: tuple[KeyReference, ...] = ()
        peer, level, bits, sealed = "", arrived, 0, ""  # mail that no relay has sealed
        if copy is not None:
            peer, level, keys = copy.peer or "", copy.protection, copy.keys
            bits, sealed = copy.quantum_bits, copy.sealed
        elif opened is not None:
            peer, level, keys, sealed = opened.peer, opened.protection, opened.keys, opened.sealed
        elif fate is not None:
            peer, level = fate.peer, fate.level
        group = keys[0].kme_group or "" if keys else ""
        key_IDs = f"[{_text(keys[0].key_ID)}]" if len(keys) == 1 else _key_IDs(keys)
        return (
            f'"event": "mail", "mail": "{mail.id}", "queue_id": {_text(mail.origin.ident)}, '
            f'"message_id": "{mail.message_id}", "sealed": "{sealed}", '
            f'{self.trail.shared(mail.listener, peer, level, group, policy)}, "key_IDs": {key_IDs}, '
            f'"quantum_bits": {bits}, "octets": {len(mail.message)}, "octets_out": {size}, '
            f'"sender": {audit.addresses.quoted(mail.envelope.sender)}'
        )


async def record_opened(audit: Audit, opened: Opened, message: bytes, by: str, *, keys_out: bool = False) -> None:
    """Records that the user `by` has decrypted `message`, or got its keys (`keys_out`); returns once that is on disk.

    Raises StoreUnavailable; then the user must not get it. `message` is still sealed.
    """
    addresses, envelope, keys = audit.addresses, opened.envelope, opened.keys
    members = (
        f'"event": "opened", "message": "{hashlib.sha256(message).hexdigest()}", "sealed": "{opened.sealed}", '
        f'"peer": {_text(opened.peer)}, "level": {_text(opened.protection)}, "key_IDs": {_key_IDs(keys)}, '
        f'"kme_group": {_text(keys[0].kme_group or "" if keys else "")}, "octets": {len(message)}, '
        f'"octets_out": {len(opened.original)}, "sender": {addresses.quoted(envelope.sender)}, "by": {_text(by)}'
        + (', "keys_out": true' if keys_out else "")
    )
    for some in in_lines(list(map(addresses.write, envelope.recipients))) or [[]]:
        line = f'"time": "{now()}", {members}, "recipients": {_list(some)}'
        await audit.write_now(line.encode("ascii"))


def _cause(audit: Audit, mailbox: str, delivery: Delivery | None, error: BaseException | None) -> str:
    """Why this recipient did not get the mail, or ""."""
    outcome = delivery.outcomes.get(mailbox, error) if delivery is not None else error
    return _without(audit.addresses.write(mailbox), audit.addresses.cause(outcome)) if outcome is not None else ""


def _without(mailbox: str, cause: str) -> str:
    """The cause without the recipient's address, so that recipients with the same cause share a record."""
    local, _, domain = mailbox.rpartition("@")
    for spelling in (mailbox, f"{local!r} at {domain}"):
        # Case-insensitive; by hand, since a pattern for each of many recipients takes a hundred times as long.
        low, name = cause.lower(), spelling.lower()
        if len(low) == len(cause) and (at := low.find(name)) >= 0:
            cause = cause[:at] + RECIPIENT + cause[at + len(name) :]
    return cause.replace(mailbox, RECIPIENT)


_NOTHING = "", ""


def _record(
    when: int,
    members: str,
    fate: Fate,
    cause: str,
    said: tuple[str, str],
    quoted: Callable[[str], str],
    mailboxes: Sequence[str],
) -> bytes:
    """A record, as JSON members; formatted in the writer's batch. `when` is time.time_ns."""
    next_hop, answer = said
    queued = _QUEUED_AS.search(answer)
    return (
        f'"time": "{as_time(when)}", {members}, "outcome": "{fate.outcome}", "reason": "{fate.reason}", '
        f'"cause": {_text(cause)}, "next_hop": {_text(next_hop)}, "queued_as": "{queued[1] if queued else ""}", '
        f'"recipients": [{", ".join(map(quoted, mailboxes))}]'
    ).encode("ascii")


def _list(texts: Iterable[str]) -> str:
    return f"[{', '.join(map(_text, texts))}]"


def _key_IDs(keys: Sequence[KeyReference]) -> str:
    written = [_text(each.key_ID) for each in keys]
    fits = bisect_right(list(accumulate(map(len, written[:MAX_KEYS]))), KEYS_OCTETS)
    first = f"[{', '.join(written[:fits])}]"
    if fits == len(keys):
        return first
    every = "\n".join([each.key_ID for each in keys]).encode("utf-8", "surrogatepass")
    return f'{first}, "keys": {len(keys)}, "key_IDs_sha256": "{hashlib.sha256(every).hexdigest()}"'


def _by_policy(recipients: Sequence[Recipient], copy: SealedCopy | None) -> dict[DecidingPolicy, list[str]]:
    """Mailboxes by deciding policy; a copy of an earlier attempt has only one."""
    if copy is None:
        return {NO_POLICY: [each.mailbox for each in recipients]} if recipients else {}
    if len(recipients) == len(copy.planned) == 1 and (decision := copy.planned[0].decision) is not None:
        return {_known(copy.policy, copy.policy_version, decision.levels): [recipients[0].mailbox]}  # the usual case
    planned = {each.recipient.mailbox: each for each in copy.planned}
    groups: dict[DecidingPolicy, list[str]] = {}
    for each in recipients:
        of = planned.get(each.mailbox)
        policy = _policy(of) if of is not None else DecidingPolicy(copy.policy, copy.policy_version)
        groups.setdefault(policy, []).append(each.mailbox)
    return groups


def _policy(planned: Planned) -> DecidingPolicy:
    decision = planned.decision
    if decision is None:
        return DecidingPolicy(planned.policy["policy"])
    return _known(decision.where, decision.version, decision.levels)


_known = lru_cache(maxsize=1000)(DecidingPolicy)
"""Cached: most policies repeat."""
NO_POLICY = DecidingPolicy()
