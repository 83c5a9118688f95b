"""The quarantine of incoming mail that cannot be delivered: triage.py puts it in, release.py lets it out.
Such a mail is held, refused, or on disk before the 250 reply; only an administrator destroys it.

The reasons, each a word that people and programs read:

    expired          no KME knows its key, and has not for `hold_for`: it never came, or its time was over
    destroyed        its key was here, was used, and was destroyed: a copy, or mail that is too late
    key-lost         the process that had asked for its key was killed before it had read the reply: nobody has it
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

from relay.errors import (
    BadSignature,
    BadTag,
    CannotOpen,
    KeyDestroyed,
    KeyLost,
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

_REASONS: dict[str, tuple[tuple[type[CannotOpen | KeyNotFound], ...], str]] = {
    "expired": ((KeyNotFound,), "The key that opens it did not arrive here in time."),
    "destroyed": ((KeyDestroyed,), "The key that opens it was used before, and was destroyed."),
    "key-lost": ((KeyLost,), "The key that opens it was lost on its way here."),
    "wrong-site": ((UnknownPeer, NotForUs), "It was sealed for another site, or by one that is not known here."),
    "tampered": ((BadTag, BadSignature), "It was changed on its way, or its signature is not right."),
    "unknown-format": ((), "It is not sealed in a way that is known here."),
    "unknown-signer": ((UnknownSigner,), "The certificate of its signer is not known here."),
    "not-accepted": ((NotAccepted,), "It was sealed in a way that was not agreed with its site."),
    "key-used": ((KeyUsed,), "The key that opens it has opened another message."),
    "redirected": ((NotNamed,), "It was sealed for somebody else, or came from somebody else than it says."),
    "outside-window": ((OutsideWindow,), "It was sealed too long ago, or by a clock that is wrong."),
    "replayed": ((Replayed,), "It says that it is a message which came before, and is another one."),
    "unprotected": ((), "It arrived with less protection than was agreed."),
}
"""The errors of each reason, and its text for recipients."""
REASONS = tuple(_REASONS)


def reason_of(error: CannotOpen | KeyNotFound) -> str:
    """The reason for an error; unknown-format for errors without their own."""
    return next((reason for reason, (kinds, _) in _REASONS.items() if isinstance(error, kinds)), "unknown-format")


def reason_text(reason: str) -> str:
    """The reason in words for a recipient."""
    return _REASONS[reason][1]
