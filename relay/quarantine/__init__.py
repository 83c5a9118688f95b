"""What becomes of arriving mail that cannot be handed on: put aside by triage.py, let out by release.py.
Standard: such a mail is held, refused, or on the disk before 250 is said; only a person destroys it.

The reasons, each a word that people and programs read:

    expired          no KME knows its key, and has not for `hold_for`: it never came, or its time was over
    destroyed        its key was here, was used, and was destroyed: a copy, or mail that is too late
    wrong-site       sealed by a site that is not configured here, or for one that we are not
    tampered         its tag or signature does not match, or the signature is by the wrong site
    unknown-format   it announces itself as sealed and is not the CMS that we accept
    unknown-signer   signed by somebody whose certificate was not imported
    not-accepted     sealed at a level that this peer may not use (`accept`), or with keys of another `use`
    key-used         its quantum key has opened another message: it is forged, or its sender used a key twice
    redirected       its sealed envelope does not name the recipient, the sender's domain, or the layers that it has
    outside-window   it was sealed too long ago, in the future, or before the store was restored
    replayed         the id in its sealed envelope was seen in another message
    unprotected      it can be read, but arrived with less protection than policy requires
"""

from __future__ import annotations

from typing import Literal, get_args

from relay.errors import (
    BadSignature,
    BadTag,
    CannotOpen,
    KeyDestroyed,
    KeyNotFound,
    KeyUsed,
    NotAccepted,
    NotForUs,
    NotNamed,
    OutsideWindow,
    Replayed,
    UnknownPeer,
    UnknownSigner,
)

Reason = Literal[
    "expired",
    "destroyed",
    "wrong-site",
    "tampered",
    "unknown-format",
    "unknown-signer",
    "not-accepted",
    "key-used",
    "redirected",
    "outside-window",
    "replayed",
    "unprotected",
]

REASONS: tuple[Reason, ...] = get_args(Reason)

_REASONS: dict[type[CannotOpen | KeyNotFound], Reason] = {
    KeyNotFound: "expired",
    KeyDestroyed: "destroyed",
    UnknownPeer: "wrong-site",
    NotForUs: "wrong-site",
    BadTag: "tampered",
    BadSignature: "tampered",
    UnknownSigner: "unknown-signer",
    NotAccepted: "not-accepted",
    KeyUsed: "key-used",
    NotNamed: "redirected",
    OutsideWindow: "outside-window",
    Replayed: "replayed",
}


def reason_of(error: CannotOpen | KeyNotFound) -> Reason:
    """The reason that stands for an error; what has none of its own is a matter of format."""
    return next((reason for kind, reason in _REASONS.items() if isinstance(error, kind)), "unknown-format")
