"""What a receiver remembers: which keys opened what, which were destroyed, which ids came and who has their mail.

Standard: relay/FORMAT.md, 9 steps 4, 7 and 11.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from tests.reader.mailboxes import Mailbox, casefolded

WINDOW_PAST = timedelta(days=7)
WINDOW_COMING = timedelta(minutes=10)


@dataclass(frozen=True)
class OneKey:
    """A quantum key by its three names."""

    group: str
    sae: str  # the master's
    key_id: str

    def folded(self) -> "OneKey":
        """The same as it is compared where it counts whether a key was used."""
        return replace(self, key_id=casefolded(self.key_id))


@dataclass(frozen=True)
class Binding:
    """The level at which a key opened something, and the fingerprints of what it opened."""

    level: str
    fingerprints: frozenset[bytes]


@dataclass(frozen=True)
class Seen:
    """A mail whose id came before: its outermost layer, who has it, and until when that is remembered."""

    fingerprint: bytes
    served: frozenset[Mailbox]
    until: datetime


@dataclass(frozen=True)
class Memory:
    """All of it. Nothing in it changes: what is learnt makes a new one, which must be durable before anything is released."""

    bound: Mapping[OneKey, Binding] = field(default_factory=dict)
    destroyed: frozenset[OneKey] = frozenset()
    seen: Mapping[tuple[str, bytes], Seen] = field(default_factory=dict)

    def forbids(self, key: OneKey, level: str, fingerprint: bytes, messages: int) -> str:
        """Why the key must not open this layer: "key destroyed" or "key used"; empty where it may (step 4)."""
        if key.folded() in self.destroyed:
            return "key destroyed"
        binding = self.bound.get(key.folded())
        if binding is None or (binding.level == level and fingerprint in binding.fingerprints):
            return ""
        if binding.level == level == "aes" and len(binding.fingerprints) < messages:
            return ""
        return "key used"

    def bind(self, keys: Iterable[OneKey], level: str, fingerprint: bytes) -> "Memory":
        """After a right tag: these keys opened this layer (step 7)."""
        bound = dict(self.bound)
        for key in keys:
            before = bound.get(key.folded())
            others = before.fingerprints if before else frozenset()
            bound[key.folded()] = Binding(level, others | {fingerprint})
        return replace(self, bound=bound)

    def serve(
        self, mail: tuple[str, bytes], fingerprint: bytes, mailboxes: Iterable[Mailbox], sealed: datetime, now: datetime
    ) -> "Memory":
        """After a delivery: these have the mail (step 12). What is too old to come again is forgotten."""
        kept = {name: seen for name, seen in self.seen.items() if seen.until >= now}
        before = kept.get(mail)
        until = max(sealed, now) + WINDOW_PAST + WINDOW_COMING
        if before:
            until = max(until, before.until)
        served = (before.served if before else frozenset()) | frozenset(mailboxes)
        return replace(self, seen={**kept, mail: Seen(fingerprint, served, until)})
