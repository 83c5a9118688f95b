"""All errors of the relay; the class decides whether mail is held (4xx) or refused (5xx).
Standard: enhanced status codes of RFC 3463 and the IANA registry that RFC 5248 opened.

The tree::

    RelayError
    ├── ConfigError            a file an administrator wrote is wrong; never reaches SMTP
    │   └── AnothersFile       a file of the relay belongs to another user than runs this
    ├── TryLater               4xx: the sender's queue keeps the mail
    │   ├── KeyUnavailable     KMEUnreachable, KMEExhausted, KMEMisconfigured, KMEBadReply, KeyNotFound, HeldForKeys
    │   │                      (relay/keys/faults.py has finer kinds of these)
    │   ├── NextHopUnavailable  OutcomeUnknown
    │   ├── PolicyHolds        NoPolicy
    │   └── DeliveryUnderWay, CannotSeal, KEMUnavailable, CertificateExpired,
    │       MailboxUnavailable, TrippedWire, QuarantineFull, StoreUnavailable, SealedForUs
    └── Refuse                 5xx: the sender is notified
        ├── MessageTooBig, PolicyRefuses (RefusedForSize), ReservedSender, NextHopRefused
        ├── MalformedMessage   MailLoop
        └── CannotOpen         BadStructure, BadTag, BadSignature, UnknownSigner, UnknownPeer, KeyDestroyed, KeyLost,
                               KeyUsed, NotAccepted, NotNamed, OutsideWindow, Replayed, NotForUs

Anything that is not a RelayError is treated as TryLater: unknown errors hold mail.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

RECIPIENT = "(the recipient)"
"""Placeholder for an address in recorded causes."""


class RelayError(Exception):
    """The root. `str(error)` is the cause, for the log; `public` is the text for an SMTP client.

    `own_words` is the cause without addresses and without text of other servers, which may name anybody; "" if nothing
    else is left. `hint` follows in the reply: it tells a client about the message that it has sent.
    """

    own_words = ""
    hint: str = ""
    code: ClassVar[int] = 451
    status: str = "4.3.0"
    public: ClassVar[str] = "Temporary failure, try again later"

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle and copy: `__init__` of a subclass may take more than the cause."""
        return _rebuilt, (type(self), self.args), self.__dict__

    @property
    def reply(self) -> str:
        """The SMTP reply: code, enhanced status, generic text, hint; never the cause, which may name hosts."""
        return f"{self.code} {self.status} {self.public}{f' ({self.hint})' if self.hint else ''}"


def _rebuilt(kind: type[RelayError], args: tuple[Any, ...]) -> RelayError:
    return kind.__new__(kind, *args)


class ConfigError(RelayError):
    """A configuration or policy file is wrong.

    `problems` has one line per fault, each beginning with `file:line:` where that is known.
    """

    def __init__(self, problems: str | list[str]) -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else problems
        super().__init__("; ".join(self.problems))


class AnothersFile(ConfigError):
    """A file of the relay belongs to another user; the text names the user to run this as."""


class TryLater(RelayError):
    """Hold: the sender's queue keeps the mail and tries again."""


class DeliveryUnderWay(TryLater):
    """The same mail is being delivered now; its outcome is not known yet."""

    status = "4.3.2"
    public = "This mail is being delivered already, try again later"


class Refuse(RelayError):
    """Refuse: the sender is notified that this mail is not delivered."""

    code = 550
    status = "5.7.1"
    public = "Message refused"


class KeyUnavailable(TryLater):
    """No quantum key is available now."""

    http_status = 0
    """HTTP status of the KME's reply; 0: there was none."""
    found: Sequence[Any] = ()
    """Requested keys that arrived nevertheless (relay.keys.Key); a KME delivers each once."""
    status = "4.7.5"
    public = "Encryption key not available, try again later"


class KMEUnreachable(KeyUnavailable):
    """No connection to the KME, no complete reply in time, or it fails, or a proxy in front of it."""


class KMEExhausted(KeyUnavailable):
    """The KME has fewer keys than requested."""


class KMEMisconfigured(KeyUnavailable):
    """The KME rejects us, or we reject it: an administrator has to act, so it is not retried at once."""


class KMEBadReply(KeyUnavailable):
    """The KME's reply is invalid."""


class KeyNotFound(KeyUnavailable):
    """The KME says that it has no such key: lag, loss, or already delivered. `claimed` is as of CannotOpen."""

    claimed = ""


class HeldForKeys(KeyUnavailable):
    """No quantum key for a level that policy lists, no other level is available, and policy says hold."""

    public = "The message waits: no encryption key for this recipient is available now"


class NextHopUnavailable(TryLater):
    """The next hop cannot be reached or answered 4xx."""

    status = "4.4.1"
    public = "Next hop not available, try again later"

    def __init__(self, cause: str, status: str | None = None) -> None:
        """`status` is the next hop's enhanced status code; it is used if its class is 4."""
        super().__init__(cause)
        if status and status.startswith("4."):
            self.status = status


class OutcomeUnknown(NextHopUnavailable):
    """The next hop got the whole content and did not reply: it may have accepted the mail."""


class PolicyHolds(TryLater):
    """Policy says hold, and no level is available, regardless of keys."""

    status = "4.7.1"
    public = "Message held by policy: no protection that it lists can be given to this recipient"


class NoPolicy(PolicyHolds):
    """No policy file covers the recipient, or only one that may not permit clear text."""

    public = "Message held by policy: no policy covers this recipient"


class CannotSeal(TryLater):
    """A certificate or key needed for sealing is missing or unusable; mail is held until an administrator has acted."""

    status = "4.7.5"
    public = "Encryption not available, try again later"


class KEMUnavailable(TryLater):
    """The library of a further KEM is not installed; mail is held until it is."""

    status = "4.7.5"
    public = "Encryption not available, try again later"


class CertificateExpired(TryLater):
    """A certificate is not valid now; mail is held until it is renewed."""

    status = "4.7.5"
    public = "Certificate not valid now, try again later"


class MailboxUnavailable(TryLater):
    """The IMAP server is unreachable, closed the connection, sent an invalid reply, or refused."""


class TrippedWire(TryLater):
    """The outgoing message is not sealed as policy requires: a fault of the relay; the mail is held."""


class StoreUnavailable(TryLater):
    """The store cannot be written now: what must survive a crash would be lost."""

    status = "4.3.1"


class QuarantineFull(TryLater):
    """Quarantine is full; the sender's queue keeps the mail."""

    status = "4.3.1"


class SealedForUs(TryLater):
    """Sealed incoming mail arrived at an outgoing listener and cannot be opened from there."""

    status = "4.7.5"
    public = "Sealed message cannot be opened here, try again later"


class TooManyRecipients(TryLater):
    """Too many recipients: the client sends the rest in another transaction (RFC 5321, 4.5.3.1.10)."""

    code = 452
    status = "4.5.3"
    public = "Too many recipients"


class MessageTooBig(Refuse):
    """The message is over the size limit."""

    code = 552
    status = "5.3.4"
    public = "Message too big"


class MalformedMessage(Refuse):
    """The message cannot be carried unchanged."""

    code = 554
    status = "5.6.0"
    public = "Malformed message"

    def __init__(self, cause: str) -> None:
        super().__init__(cause)

    @property
    def reply(self) -> str:
        """The reply with its cause, which only concerns the sender's own bytes."""
        return f"{self.code} {self.status} {self.public}: {self}"


class MailLoop(MalformedMessage):
    """The message has too many Received fields and must be in a loop (RFC 5321, 6.3)."""

    status = "5.4.6"
    public = "Too many hops"


class PolicyRefuses(Refuse):
    """No level of the policy is available, and it says refuse."""

    public = "No permitted protection for this recipient"


class RefusedForSize(PolicyRefuses):
    """The message is larger than any level that policy lists takes, and policy says refuse."""

    code = 552
    status = "5.2.3"
    public = "Message too big for the protection that this recipient requires"


class ReservedSender(Refuse):
    """The sender is the canary's address, from which only the relay itself sends."""

    public = "Only the relay itself sends from this address"


class NextHopRefused(Refuse):
    """The next hop answered 5xx."""

    code = 554
    status = "5.0.0"
    public = "Refused by the next hop"

    def __init__(self, cause: str, status: str | None = None) -> None:
        """`status` is the next hop's enhanced status code; it is used if its class is 5."""
        super().__init__(cause)
        if status and status.startswith("5."):
            self.status = status


class CannotOpen(Refuse):
    """A sealed message cannot be opened, and a retry would not help.

    `silent` is set once keys have been used: all later failures get the same reply, without a cause. `claimed` is the
    configured peer that the sealed layers name, verified or not; "" if they name none.
    """

    silent = False
    claimed = ""

    code = 554
    status = "5.7.5"
    public = "Sealed message cannot be opened"


class BadStructure(CannotOpen):
    """Not the CMS structure that we accept."""


class BadTag(CannotOpen):
    """The authentication tag does not match: the message was changed, or the key is wrong."""


class BadSignature(CannotOpen):
    """The signature does not match the content, or another key signed it."""


class UnknownSigner(CannotOpen):
    """The signer's certificate was not imported."""


class UnknownPeer(CannotOpen):
    """Sealed by, or for, a site that is not configured here."""


class KeyDestroyed(CannotOpen):
    """Its quantum key was destroyed when it expired."""


class KeyLost(CannotOpen):
    """Its quantum key is lost: missing from all KMEs for too long, or the reply that had it was never read."""


class NotAccepted(CannotOpen):
    """Sealed at a level that this peer may not use, or with keys of a group for another level."""


class KeyUsed(CannotOpen):
    """Its quantum key has opened another message: forged, or the sender used the key twice."""


class NotNamed(CannotOpen):
    """The sealed envelope's sites, layers, sender or recipients do not match what arrived."""


class OutsideWindow(CannotOpen):
    """Sealed too long ago, in the future, or before the store was restored: a replay could not be detected."""


class Replayed(CannotOpen):
    """Another message had the same ID in its sealed envelope."""


class NotForUs(CannotOpen):
    """Sealed to a certificate that is not ours."""
