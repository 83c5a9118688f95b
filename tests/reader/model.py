"""What the receiver knows, what it gets, and what comes of it.

Standard: relay/FORMAT.md, 9; the words are those of tests/vectors/README.md.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.reader.memory import Memory, OneKey

# Whom a mail may be from, when the configuration lists `*`.
ANYBODY = "*"


class Failure(Exception):
    """Why nothing is released: the step of section 9, the kind as in tests/vectors/README.md, and what it was."""

    def __init__(self, step: int, kind: str, detail: str = "") -> None:
        super().__init__(f"step {step}: {kind}: {detail}")
        self.step = step
        self.kind = kind


@dataclass(frozen=True)
class Certificate:
    """A pinned certificate, as far as a receiver looks at it. Times are seconds since 1970."""

    identifier: bytes
    issuer: bytes  # DER
    serial: int
    not_before: float
    not_after: float
    algorithm: str
    public_key: bytes  # of SubjectPublicKeyInfo, without the unused bits


@dataclass(frozen=True)
class Peer:
    """Another site, as the configuration has it."""

    name: str
    sae: str
    domains: frozenset[str]
    groups: frozenset[str]
    accept: frozenset[str] = frozenset({"otp", "aes", "pqc", "rsa"})
    forwards: frozenset[str] = frozenset()
    key_max_messages: int = 1
    certificates: tuple[Certificate, ...] = ()


@dataclass(frozen=True)
class PrivateKey:
    """One of our own keys: what names it in a recipient, and how it opens.

    `open` gives the shared secret of an encapsulation, or the content key of an RSA ciphertext, or raises ValueError.
    """

    name: str  # "ml-kem-1024-p384", "rsa", or that of a further KEM
    identifier: bytes
    issuer: bytes
    serial: int
    open: Callable[[bytes], bytes]


@dataclass(frozen=True)
class Site:
    """This site: its SAE, its peers, what the groups serve, its aliases, its private keys, its mail domains."""

    sae: str
    peers: tuple[Peer, ...]
    groups: Mapping[str, str]  # group to "otp", "aes" or "both"
    aliases: Mapping[str, frozenset[str]] = field(default_factory=dict)  # sealed recipient to mailboxes
    private_keys: tuple[PrivateKey, ...] = ()
    domains: frozenset[str] = frozenset({"bob.example"})


Keys = Mapping[OneKey, bytes]


@dataclass(frozen=True)
class Delivered:
    """It was opened: the original goes to `recipients`, from `sender`."""

    original: bytes
    sender: str
    recipients: tuple[str, ...]
    protection: str
    peer: str
    served: tuple[str, ...]
    aside: tuple[str, ...]
    fingerprint: bytes
    memory: Memory


@dataclass(frozen=True)
class PassedOn:
    """It is not for us: passed on unopened."""

    memory: Memory


@dataclass(frozen=True)
class Held:
    """A key is not known (yet)."""

    memory: Memory


@dataclass(frozen=True)
class Refused:
    """Nothing is released: the step of section 9 and the kind."""

    step: int
    kind: str
    memory: Memory


Outcome = Delivered | PassedOn | Held | Refused
