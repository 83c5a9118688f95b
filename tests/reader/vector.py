"""A file of tests/vectors: the site, keys and memory that it tells of, the message that arrives, and what has to come of it.

Standard: tests/vectors/README.md.
"""

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM1024PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from tests.reader.mailboxes import domain, mailbox
from tests.reader.memory import WINDOW_COMING, WINDOW_PAST, Binding, Memory, OneKey, Seen
from tests.reader.model import Certificate, Peer, PrivateKey, Site
from tests.reader.signed import certificate
from tests.reader.structures import ML_KEM

VECTORS = Path(__file__).parents[1] / "vectors"
SITE = "1"
_DEFAULTS = {
    "now": ["2026-11-25T10:00:00Z"],
    "peer": ["alice sae=2 domains=alice.example groups=alice-bob"],
    "group": ["alice-bob use=both"],
    "sender": ["ann@alice.example"],
    "recipient": ["ben@bob.example"],
}


@dataclass(frozen=True)
class Vector:
    """One file. `fields` has the values of each name, in order, as they are written."""

    name: str
    fields: dict[str, list[str]]
    message: bytes

    def one(self, name: str) -> str:
        """The value of a field that comes once; its default, or nothing, where it is not there."""
        return self.several(name, [""])[0]

    def several(self, name: str, default: list[str] | None = None) -> list[str]:
        """The values of a field that may come several times."""
        return self.fields.get(name, _DEFAULTS.get(name, default or []))

    @property
    def now(self) -> datetime:
        """The receiver's time."""
        return datetime.strptime(self.one("now"), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)

    @property
    def site(self) -> Site:
        """Bob's site, as the file has it."""
        groups = (line.split(" ") for line in self.several("group"))
        aliases = (line.split(" ") for line in self.several("alias"))
        return Site(
            SITE,
            tuple(_peer(line) for line in self.several("peer")),
            {name: use.removeprefix("use=") for name, use in groups},
            {recipient: frozenset(others) for recipient, *others in aliases},
            bobs_keys() + tuple(_secret(line) for line in self.several("secret")),
        )

    @property
    def keys(self) -> dict[OneKey, bytes]:
        """What Bob's KMEs give."""
        lines = (line.split(" ") for line in self.several("key"))
        return {OneKey(group, sae, key_id): bytes.fromhex(octets) for group, sae, key_id, octets in lines}

    @property
    def memory(self) -> Memory:
        """What Bob's relay remembers."""
        destroyed = (OneKey(*line.split(" ")).folded() for line in self.several("destroyed"))
        return Memory(bound(self.several("bound")), frozenset(destroyed), dict(map(self._seen, self.several("seen"))))

    def _seen(self, line: str) -> tuple[tuple[str, bytes], Seen]:
        sae, mail, fingerprint, *mailboxes = line.split(" ")
        until = self.now + WINDOW_PAST + WINDOW_COMING
        served = frozenset(map(mailbox, mailboxes))
        return (sae, bytes.fromhex(mail)), Seen(bytes.fromhex(fingerprint), served, until)


def bound(lines: list[str]) -> dict[OneKey, Binding]:
    """Of fields `bound` or `binds`."""
    found: dict[OneKey, Binding] = {}
    for line in lines:
        group, sae, key_id, level, *fingerprints = line.split(" ")
        found[OneKey(group, sae, key_id).folded()] = Binding(level, frozenset(map(bytes.fromhex, fingerprints)))
    return found


def read(path: Path) -> Vector:
    """One file. Raises ValueError where it is not as its README has it."""
    head, _, content = path.read_bytes().partition(b"\n\n")
    fields: dict[str, list[str]] = {}
    for line in head.decode("utf-8").split("\n"):
        name, colon, value = line.partition(":")
        if not colon:
            raise ValueError(f"{path}: a line that is no field: {line}")
        fields.setdefault(name, []).append(value.removeprefix(" "))
    if fields.pop("form") == ["message"]:
        return Vector(path.stem, fields, content)
    return Vector(path.stem, fields, around(base64.b64decode(content)))


def around(octets: bytes) -> bytes:
    """The message in which one ContentInfo arrives, where the form is `cms`."""
    return (
        b"Content-Type: application/pkcs7-mime; smime-type=authEnveloped-data\r\n"
        b"Content-Transfer-Encoding: base64\r\n\r\n" + base64.encodebytes(octets).replace(b"\n", b"\r\n")
    )


def _peer(line: str) -> Peer:
    name, *settings = line.split(" ")
    values = {key: value for key, _, value in (setting.partition("=") for setting in settings)}
    sets = {key: frozenset(value.split(",")) - {""} for key, value in values.items()}
    return Peer(
        name,
        values["sae"],
        frozenset(map(domain, sets["domains"])),
        sets["groups"],
        sets.get("accept", frozenset({"otp", "aes", "pqc", "rsa"})),
        sets.get("forwards", frozenset()),
        int(values.get("messages", "1")),
        pinned(name),
    )


@cache
def pinned(name: str) -> tuple[Certificate, ...]:
    """The certificates of a site; none where it has none."""
    return tuple(_certificate(path) for path in sorted((VECTORS / "keys").glob(f"{name}-*.crt.pem")))


def _certificate(path: Path) -> Certificate:
    lines = path.read_text().splitlines()
    return certificate(base64.b64decode("".join(line for line in lines if not line.startswith("-"))))


@cache
def bobs_keys() -> tuple[PrivateKey, ...]:
    """Bob's private keys, for ML-KEM-1024 with P-384 and RSA."""
    kem = MLKEM1024PrivateKey.from_seed_bytes(seed("bob kem", 64))
    curve = p384("bob kem")
    public = _encoded(curve.public_key())

    def decapsulate(ciphertext: bytes) -> bytes:
        point = ciphertext[1568:]
        if point[0] != 4:
            raise ValueError("a point in another form")
        other = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), point)
        secrets = kem.decapsulate(ciphertext[:1568]) + curve.exchange(ec.ECDH(), other)
        return hashlib.sha3_256(secrets + point + public + b"MLKEM1024-P384").digest()

    pem = (VECTORS / "keys" / "test-only-bob-rsa-encryption.key.pem").read_bytes()
    rsa_key = load_pem_private_key(pem, None, unsafe_skip_rsa_key_validation=True)
    if not isinstance(rsa_key, rsa.RSAPrivateKey):
        raise TypeError("not an RSA key")
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    return (
        _private_key(ML_KEM, "bob-kem", decapsulate),
        _private_key("rsa", "bob-rsa-encryption", lambda ciphertext: rsa_key.decrypt(ciphertext, oaep)),
    )


def _private_key(name: str, file: str, opens: Callable[[bytes], bytes]) -> PrivateKey:
    certified = _certificate(VECTORS / "keys" / f"{file}.crt.pem")

    def opened(octets: bytes) -> bytes:
        try:
            return opens(octets)
        except InvalidKey as error:
            raise ValueError("no key inside") from error

    return PrivateKey(name, certified.identifier, certified.issuer, certified.serial, opened)


def _secret(line: str) -> PrivateKey:
    """A key of a further KEM that makes one secret of any ciphertext, so that no library for it is needed."""
    name, identifier, secret = line.split(" ")
    return PrivateKey(name, bytes.fromhex(identifier), b"", 0, lambda _: bytes.fromhex(secret))


def p384(text: str) -> ec.EllipticCurvePrivateKey:
    """The number that 47 octets of a text of the vectors are, as a private key."""
    return ec.derive_private_key(int.from_bytes(seed(f"{text} p384", 47)), ec.SECP384R1())


def _encoded(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def seed(text: str, octets: int) -> bytes:
    """What SHAKE-256 makes of a text of the vectors."""
    return hashlib.shake_256(f"QuMail Relay test vectors: {text}".encode()).digest(octets)
