"""Writes what became of a mail into the audit record: one record for each group of its recipients, at each try.
Standard: deploy/AUDIT.md; those are one group who share a copy, a policy, an outcome and its cause.

A mail is announced right before it leaves, and recorded when its try is over, whatever came of it. Nothing here waits.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from json.encoder import encode_basestring_ascii as _text
from typing import NamedTuple

from relay.audit.entries import MAX_REASON, now
from relay.audit.pending import Announced
from relay.audit.writing import Audit
from relay.deliveries import Delivery
from relay.fates import Fate
from relay.keys import KeyReference
from relay.mail import Mail, Recipient
from relay.plan import Planned
from relay.sealing import SealedCopy

MAX_KEYS = 1000
"""So many key_IDs stand in a record; of more, their number and a digest do."""
MAX_LISTED = 1000
"""So many recipients stand in one record; a larger group has several."""
_QUEUED_AS = re.compile(r"queued as ([0-9A-Za-z]{1,64})\b")


class Policy(NamedTuple):
    """Which policy decided, in which version, and what it lists."""

    where: str = ""
    version: str = ""
    listed: tuple[str, ...] = ()


class Part:
    """Those who share a copy and a policy: what their records begin with, as JSON members, and their announcement."""

    __slots__ = ("announced", "members")

    def __init__(self, members: str) -> None:
        self.members = members
        self.announced: Announced | None = None


@dataclass(frozen=True, slots=True)
class Trail:
    """What it works with, for one direction. Without an `audit` nothing is written.

    `algorithms` says what each layer is made of.
    """

    direction: str
    audit: Audit | None = None
    algorithms: Mapping[str, str] = field(default_factory=dict)

    def of(self, mail: Mail) -> Try:
        """One try of a mail, to be ended in any case."""
        return Try(self, mail)


class Try:
    """One try of a mail; whoever carries it out says which delivery it is, and what is about to leave."""

    __slots__ = ("_audit", "_delivery", "_mail", "_of", "_trail")

    def __init__(self, trail: Trail, mail: Mail) -> None:
        self._trail = trail
        self._audit = trail.audit if trail.audit is not None and trail.audit.every_mail else None
        self._mail = mail
        self._delivery: Delivery | None = None
        self._of: dict[str, Part] = {}

    def begins(self, delivery: Delivery) -> None:
        """What is known of it from here on is in there."""
        self._delivery, delivery.witness = delivery, self

    def leaves(self, recipients: Sequence[Recipient], octets: int, copy: SealedCopy | None) -> None:
        """To be called before the end of the content, as often as that is. Raises StoreUnavailable.

        Then the mail may not leave, for it would have no record.
        """
        audit, delivery = self._audit, self._delivery
        if audit is None or delivery is None or (self._of and recipients[0].mailbox in self._of):
            return
        time = now()
        for policy, mailboxes in _by_policy(recipients, copy).items():
            part = Part(self._members(copy, policy, octets))
            whom = f'"recipients": {self._hashed(mailboxes)}, "names": {_list_of_hex(delivery.names(mailboxes))}'
            part.announced = audit.announce(f'{{"time": "{time}", {whom}, {part.members}}}'.encode("ascii"))
            for mailbox in mailboxes:
                self._of[mailbox] = part

    def end(self, fates: Mapping[str, Fate], error: BaseException | None) -> None:
        """The try is over, with these fates by mailbox; `error` is that of all of whom nothing else is known."""
        if self._delivery is not None:
            # In a circle of references the mail would stay in memory until the next search for such.
            self._delivery.witness = None
        if self._audit is None:
            return
        if len(self._of) < len(fates):
            self._complete(fates)
        groups: dict[tuple[Part, str], list[str]] = {}
        for mailbox, fate in fates.items():
            groups.setdefault((self._of[mailbox], self._end(mailbox, fate, error)), []).append(mailbox)
        time = now()
        for (part, said), mailboxes in groups.items():
            for begin in range(0, len(mailboxes), MAX_LISTED):
                whom = self._hashed(mailboxes[begin : begin + MAX_LISTED])
                record = f'"time": "{time}", {part.members}, {said}, "recipients": {whom}'
                self._audit.note(record.encode("ascii"), part.announced)
                part.announced = None

    def _complete(self, fates: Mapping[str, Fate]) -> None:
        """What is known of those of whom nothing was about to leave."""
        delivery = self._delivery
        parts: dict[tuple[str, str, Policy], Part] = {}
        for copy in delivery.copies if delivery is not None else ():
            rest = [each for each in copy.recipients if each.mailbox not in self._of]
            for policy, mailboxes in _by_policy(rest, copy).items():
                self._of |= dict.fromkeys(mailboxes, Part(self._members(copy, policy, 0)))
        for mailbox, fate in fates.items():
            if mailbox not in self._of:
                planned = delivery.without.get(mailbox) if delivery is not None else None
                policy = _policy(planned) if planned is not None else NO_POLICY
                what = fate.peer, fate.level, policy
                if what not in parts:
                    parts[what] = Part(self._members(None, policy, 0, fate))
                self._of[mailbox] = parts[what]

    def _end(self, mailbox: str, fate: Fate, error: BaseException | None) -> str:
        """What became of this recipient, as JSON members."""
        cause: object = ""
        next_hop = queued_as = ""
        delivery = self._delivery
        if fate.reason:
            found = delivery.outcomes.get(mailbox, error) if delivery is not None else error
            cause = found if found is not None else ""
        elif delivery is not None and mailbox in delivery.said:
            next_hop, answer = delivery.said[mailbox]
            queued = _QUEUED_AS.search(answer)
            queued_as = queued[1] if queued else ""
        return (
            f'"outcome": "{fate.outcome}", "reason": "{fate.reason}", "cause": {_text(str(cause)[:MAX_REASON])}, '
            f'"next_hop": {_text(next_hop)}, "queued_as": "{queued_as}"'
        )

    def _members(self, copy: SealedCopy | None, policy: Policy, octets: int, fate: Fate | None = None) -> str:
        """All that is known before anybody has it. Written by hand, for json.dumps takes four times as long."""
        mail, delivery = self._mail, self._delivery
        opened = delivery.opened if delivery is not None else None
        keys: tuple[KeyReference, ...] = ()
        peer, level, bits, sealed = "", "plaintext", 0, ""  # what is not sealed goes on as it came
        if copy is not None:
            peer, level, keys = copy.peer or "", copy.protection, copy.keys
            bits, sealed = copy.quantum_bits, copy.sealed
        elif opened is not None:
            peer, level, keys, sealed = opened.peer, opened.protection, opened.keys, opened.sealed
        elif fate is not None:
            peer, level = fate.peer, fate.level
        group = keys[0].kme_group or "" if keys else ""
        how = _how(self._trail.direction, mail.door, peer, level, self._algorithms(level), group, policy)
        return (
            f'"event": "mail", "mail": "{mail.id}", "queue_id": {_text(mail.origin.ident)}, '
            f'"message_id": "{mail.message_id}", "sealed": "{sealed}", {how}, "key_IDs": {_key_IDs(keys)}, '
            f'"quantum_bits": {bits}, "octets": {len(mail.message)}, "octets_out": {octets}, '
            f'"sender": {_text(self._address(mail.envelope.sender))}'
        )

    def _algorithms(self, level: str) -> str:
        return "; ".join([self._trail.algorithms.get(layer, "") for layer in level.split("+")])

    def _hashed(self, mailboxes: Sequence[str]) -> str:
        return _list([self._address(each) for each in mailboxes])

    def _address(self, mailbox: str) -> str:
        return self._audit.addresses.write(mailbox) if self._audit is not None else ""


def _list_of_hex(names: Iterable[bytes]) -> str:
    return f"""[{", ".join([f'"{each.hex()}"' for each in names])}]"""


def _list(texts: Iterable[str]) -> str:
    return f"[{', '.join(map(_text, texts))}]"


@lru_cache(maxsize=1000)
def _how(direction: str, door: str, peer: str, level: str, algorithms: str, kme_group: str, policy: Policy) -> str:
    """What many mails have in common."""
    return (
        f'"direction": "{direction}", "door": "{door}", "peer": {_text(peer)}, "level": {_text(level)}, '
        f'"algorithms": {_text(algorithms)}, "kme_group": {_text(kme_group)}, "policy": {_text(policy.where)}, '
        f'"policy_version": {_text(policy.version)}, "listed": {_list(policy.listed)}'
    )


def _key_IDs(keys: Sequence[KeyReference]) -> str:
    if len(keys) <= MAX_KEYS:
        return _list([each.key_ID for each in keys])
    every = "\n".join([each.key_ID for each in keys]).encode("utf-8", "surrogatepass")
    first = _list([each.key_ID for each in keys[:MAX_KEYS]])
    return f'{first}, "keys": {len(keys)}, "key_IDs_sha256": "{hashlib.sha256(every).hexdigest()}"'


def _by_policy(recipients: Sequence[Recipient], copy: SealedCopy | None) -> dict[Policy, list[str]]:
    """The mailboxes that one policy treats alike; of an earlier try's copy one policy is known."""
    if copy is None:
        return {NO_POLICY: [each.mailbox for each in recipients]} if recipients else {}
    planned = {each.recipient.mailbox: each for each in copy.planned}
    found: dict[Policy, list[str]] = {}
    for each in recipients:
        of = planned.get(each.mailbox)
        policy = _policy(of) if of is not None else Policy(copy.policy, copy.policy_version)
        found.setdefault(policy, []).append(each.mailbox)
    return found


def _policy(planned: Planned) -> Policy:
    decision = planned.decision
    if decision is None:
        return Policy(planned.policy["policy"])
    return Policy(decision.where, decision.version, decision.levels)


NO_POLICY = Policy()
