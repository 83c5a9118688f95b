"""The cryptographic schemes of the levels; each file holds both directions of one level, and has the level's name.
Standard: input and output are CMS (RFC 5652); every scheme fulfils the contract below.

aes.py, otp.py, pqc.py and rsa.py are independent; content_key.py, padding.py and signatures.py are shared. The other
properties of a level are in relay/levels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from relay.formats.cms import AuthEnveloped, CertificateID
from relay.formats.pieces import Octets, Pieces
from relay.keys import Key, KeyReference
from relay.keys.pads import Pad
from relay.keys.types import SealingKey
from relay.levels import AES, OTP, KMEUse, Level

if TYPE_CHECKING:
    from relay.identity import Identity, PeerCertificates


@dataclass(frozen=True, slots=True)
class Parties:
    """The two ends of one sealed message: the site that seals (master SAE) and the peer that opens (slave SAE).

    `peer` is the peer's name; `identity` (ours) and `certificates` (the peer's) are needed by levels with
    certificates.
    """

    master_sae: str
    slave_sae: str
    peer: str
    identity: Identity | None = None
    certificates: PeerCertificates | None = None


class FreshKeys(Protocol):
    """The source of quantum keys for sealing (relay/keys/ring.py); each key is returned once."""

    async def take(self, peer: str, *, level: str = AES.name, size: int = 0) -> SealingKey:
        """A key of 256 bits for one message of `size` bytes to `peer`. Raises KeyUnavailable."""

    async def take_pad(self, peer: str, hidden: int) -> Pad:
        """A one-time pad that hides `hidden` octets. Raises KeyUnavailable."""


class Supplies(Protocol):
    """Reports which keys are available."""

    async def can_supply(self, peer: str, hidden: int, *, low_priority: bool = False) -> int:
        """The cost in bytes of such a pad (0: one key) that is available now. Raises KeyUnavailable."""


class KeysWithReserve(Supplies, Protocol):
    """FreshKeys with a reserve for mail of normal priority."""

    async def take(self, peer: str, *, level: str = AES.name, size: int = 0, low_priority: bool = False) -> SealingKey:
        """A key of 256 bits for one message of `size` bytes to `peer`. Raises KeyUnavailable."""

    async def take_pad(self, peer: str, hidden: int, *, level: str = OTP.name, low_priority: bool = False) -> Pad:
        """A one-time pad that hides `hidden` octets. Raises KeyUnavailable."""


@dataclass(frozen=True)
class SealedPayload:
    """The result of sealing: the AuthEnvelopedData as DER, and the quantum keys spent on it, for the log.

    The `pieces` are encrypted while they are consumed, off the event loop if there are many; `der` is all of them.
    """

    pieces: Pieces = field(repr=False)
    keys: tuple[KeyReference, ...] = ()
    quantum_bits: int = 0
    _whole: list[bytes] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def der(self) -> bytes:
        """All pieces, consumed once and cached, since nothing may be encrypted twice."""
        if not self._whole:
            self._whole.append(bytes(self.pieces))
        return self._whole[0]


@dataclass(frozen=True, slots=True)
class Opening:
    """The inputs of opening beside the message: quantum keys by key_ID, our private keys, peers' certificates.

    `signers` returns every peer with a pinned certificate that a SignedData names: none for a stranger, and several
    only if a peer claims another's. The key that verifies decides. A level under quantum keys calls `verified` once the
    tag is valid. From then on these keys are bound to this ciphertext, even if another check fails.
    """

    keys: Mapping[str, Key]
    identity: Identity | None = None
    signers: Callable[[CertificateID], Sequence[PeerCertificates]] = lambda _: ()
    verified: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Unsealed:
    """A payload whose tag and signature were verified; `signed_by` is the peer that signed, if any."""

    payload: bytes = field(repr=False)
    signed_by: PeerCertificates | None = None


class Scheme(ABC):
    """One way to seal. `open` returns exactly the payload given to `seal`, or raises.

    `name`, `algorithms`, `use` and `quantum` are those of its `level` in the register. A layer that is no level sets
    its own.
    """

    name: str
    algorithms: str
    use: KMEUse | None = None
    quantum: bool = False

    def __init_subclass__(cls, *, level: Level | None = None) -> None:
        """Copies the properties of the scheme's level."""
        if level is not None:
            cls.name, cls.algorithms = level.name, level.algorithms
            cls.use, cls.quantum = level.use, level.quantum

    def obstacle(self, parties: Parties) -> str:
        """Why this level is impossible for these parties, or "" if it can be tried."""
        return ""

    @abstractmethod
    async def seal(self, payload: Octets | Pieces, parties: Parties, keys: FreshKeys) -> SealedPayload:
        """Seals `payload`, with the quantum keys that this level needs. Raises KeyUnavailable or CannotSeal."""

    @abstractmethod
    def recognises(self, enveloped: AuthEnveloped) -> bool:
        """Whether this level sealed it: all recipients have its kind of key."""

    def references(self, enveloped: AuthEnveloped) -> tuple[KeyReference, ...]:
        """The quantum keys that a sealed message names. Raises BadStructure."""
        return ()

    @abstractmethod
    async def open(self, enveloped: AuthEnveloped, opening: Opening) -> Unsealed:
        """The payload, verified. Raises BadStructure, BadTag, BadSignature or KeyNotFound."""
