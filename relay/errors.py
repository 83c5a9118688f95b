"""Every failure of the relay, each knowing whether mail is held (4xx) or refused (5xx).
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
        ├── MessageTooBig, PolicyRefuses, ReservedSender, NextHopRefused
        ├── MalformedMessage   MailLoop
        └── CannotOpen         BadStructure, BadTag, BadSignature, UnknownSigner, UnknownPeer, KeyDestroyed, KeyLost,
                               KeyUsed, NotAccepted, NotNamed, OutsideWindow, Replayed, NotForUs

Anything that is not a RelayError is treated as TryLater: unknown errors hold mail.
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import ClassVar

RECIPIENT = "(the recipient)"
"""Placeholder for an address in recorded causes."""


class RelayError(Exception):
    """The root. `str(error)` is the cause, for the log; `public` is the text for an SMTP client.

    `own_words` is the cause without the parts of addresses, and without what others have said, who may name anybody; ""
    where that is all of it.
    """

    own_words = ""
    code: ClassVar[int] = 451
    status: str = "4.3.0"
    public: ClassVar[str] = "Temporary failure, try again later"

    @property
    def reply(self) -> str:
        """The SMTP reply: code, enhanced status, generic text; never the cause, which may name hosts."""
        return f"{self.code} {self.status} {self.public}"


class ConfigError(RelayError):
    """A configuration or policy file is wrong.

    `problems` has one line per fault, each beginning with `file:line:` where that is known.
    """

    def __init__(self, problems: str | list[str]) -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else problems
        super().__init__("; ".join(self.problems))


class AnothersFile(ConfigError):
    """A file that only the relay may read belongs to another user than runs this; it says as whom that is to be run."""

    def __init__(self, path: Path, owner: int) -> None:
        name, me = _user(owner), _user(os.geteuid())
        super().__init__(
            f"{path}: belongs to user {name}, and this runs as {me}: the relay and its commands have to run as {name}; "
            f"as root: runuser -u {name} -- qumail-relay ..."
        )


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


class TryLater(RelayError):
    """Hold: the sender's queue keeps the mail and tries again."""


class DeliveryUnderWay(TryLater):
    """The same mail is being delivered at this moment, and its outcome is not known yet."""

    status = "4.3.2"
    public = "This mail is being delivered already, try again later"


class Refuse(RelayError):
    """Refuse: the sender is notified that this mail will not go."""

    code = 550
    status = "5.7.1"
    public = "Message refused"


class KeyUnavailable(TryLater):
    """No quantum key is available now."""

    status = "4.7.5"
    public = "Encryption key not available, try again later"


class KMEUnreachable(KeyUnavailable):
    """No connection to the KME, no answer in time, or an answer that broke off."""


class KMEExhausted(KeyUnavailable):
    """The KME has fewer keys than were asked for."""


class KMEMisconfigured(KeyUnavailable):
    """The KME does not accept us, or we do not accept it: a person has to act, so it is not retried at once."""


class KMEBadReply(KeyUnavailable):
    """The KME's answer is invalid."""


class KeyNotFound(KeyUnavailable):
    """The KME does not know a key_ID: lag, loss, or already delivered. `claimed` is as of CannotOpen."""

    claimed = ""


class HeldForKeys(KeyUnavailable):
    """A quantum key is missing for a level that policy lists, no other is available, and policy says hold."""

    public = "The message waits: no encryption key for this recipient is available now"


class NextHopUnavailable(TryLater):
    """The next hop cannot be reached or answered 4xx."""

    status = "4.4.1"
    public = "Next hop not available, try again later"

    def __init__(self, cause: str, status: str | None = None) -> None:
        """`status` is what the next hop gave as its enhanced status code; it counts where its class is 4."""
        super().__init__(cause)
        if status and status.startswith("4."):
            self.status = status


class OutcomeUnknown(NextHopUnavailable):
    """The next hop had all of the content and gave no verdict on it: it may have taken the mail."""


class PolicyHolds(TryLater):
    """Policy says hold and no level is available, whatever keys there are."""

    status = "4.7.1"
    public = "Message held by policy: no protection that it lists can be given to this recipient"


class NoPolicy(PolicyHolds):
    """No policy file covers the recipient, or only one that may not let their mail out in clear."""

    public = "Message held by policy: no policy covers this recipient"


class CannotSeal(TryLater):
    """A certificate or key that sealing needs is missing or cannot be used: the mail waits until a person has acted."""

    status = "4.7.5"
    public = "Encryption not available, try again later"


class KEMUnavailable(TryLater):
    """A KEM beside ML-KEM cannot be done here: the mail waits until a person has installed its library."""

    status = "4.7.5"
    public = "Encryption not available, try again later"


class CertificateExpired(TryLater):
    """A certificate is not valid now: the mail waits until a person has renewed it."""

    status = "4.7.5"
    public = "Certificate not valid now, try again later"


class MailboxUnavailable(TryLater):
    """The IMAP server cannot be reached, broke off, answered what cannot be believed, or said no."""


class TrippedWire(TryLater):
    """The outgoing message is not sealed as policy wants: a fault of the relay, and the mail is held."""


class StoreUnavailable(TryLater):
    """The store cannot be written now, and what must survive a crash would be lost."""

    status = "4.3.1"


class QuarantineFull(TryLater):
    """There is no room left for a message that cannot be opened: its sender's queue keeps it."""

    status = "4.3.1"


class SealedForUs(TryLater):
    """Mail that arrives sealed came to the listener of mail that leaves, and cannot be opened from there."""

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
        """The cause is about the sender's own bytes, so the sender may hear it."""
        return f"{self.code} {self.status} {self.public}: {self}"


class MailLoop(MalformedMessage):
    """The message has more Received fields than any real route: it is in a loop (RFC 5321, 6.3)."""

    status = "5.4.6"
    public = "Too many hops"


class PolicyRefuses(Refuse):
    """None of the policy's levels are available, and it says refuse."""

    public = "No permitted protection for this recipient"


class ReservedSender(Refuse):
    """The sender is the canary's address, from which only the relay itself sends."""

    public = "Only the relay itself sends from this address"


class NextHopRefused(Refuse):
    """The next hop answered 5xx."""

    code = 554
    status = "5.0.0"
    public = "Refused by the next hop"

    def __init__(self, cause: str, status: str | None = None) -> None:
        """`status` is what the next hop gave as its enhanced status code; it counts where its class is 5."""
        super().__init__(cause)
        if status and status.startswith("5."):
            self.status = status


class CannotOpen(Refuse):
    """A sealed message cannot be opened, and waiting will not help.

    `silent` is set once keys have been used: from then on all failures get the same answer, without a cause. `claimed`
    is the one known peer that the sealed layers name as its sender, verified or not; "" where they name none.
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
    """The signature does not match the content, or is by another signer."""


class UnknownSigner(CannotOpen):
    """The signer's certificate was not imported."""


class UnknownPeer(CannotOpen):
    """Sealed by, or for, a site that is not configured here."""


class KeyDestroyed(CannotOpen):
    """Its quantum key was here, and was destroyed when its time was over."""


class KeyLost(CannotOpen):
    """No KME knows its quantum key, and it is lost: missing for too long, or its reply was never read."""


class NotAccepted(CannotOpen):
    """Sealed at a level that this peer may not use, or under keys of a group that serves another one."""


class KeyUsed(CannotOpen):
    """Its quantum key has opened another message: this one is forged, or the sender used a key twice."""


class NotNamed(CannotOpen):
    """The sealed envelope's sites, layers, sender or recipients do not match what arrived."""


class OutsideWindow(CannotOpen):
    """Sealed too long ago, in the future, or before the store was restored: a replay could not be detected."""


class Replayed(CannotOpen):
    """The id in its sealed envelope was seen in another message."""


class NotForUs(CannotOpen):
    """Sealed to a certificate that is not ours."""
