"""The register of levels: the single definition of each level.
Standard: relay/FORMAT.md (the forms), policies/README.md (names, numbers, order); relay/ADDING.md says how to add one.

It has no cryptography and imports nothing of the relay: relay/schemes/NAME.py seals and opens level NAME.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

SealingLevel = Literal["otp", "aes", "pqc", "rsa"]
"""The names of the levels between two relays, strongest first."""

LevelName = Literal["otp", "aes", "pqc+aes", "pqc", "rsa+aes", "rsa", "smime", "plaintext"]
"""The levels that a policy file may list, in the one order of strength: strongest first.

`pqc+aes` is level pqc with one more layer under a quantum key around it.
"""

KMEUse = Literal["otp", "aes", "both"]
"""The use of a KME's keys in relay.toml: PADS, SINGLE_KEYS, or both."""
PADS: Final = "otp"
SINGLE_KEYS: Final = "aes"

PLAINTEXT: Final = "plaintext"
ONLY_PLAINTEXT: tuple[LevelName, ...] = (PLAINTEXT,)
"""The only list of levels that lets mail out unsealed."""


@dataclass(frozen=True, slots=True)
class KEMForm:
    """A key encapsulation in messages: its name, its object identifier, and its sizes in octets."""

    name: str
    oid: str
    public_key_octets: int
    ciphertext_octets: int


@dataclass(frozen=True, slots=True)
class WireForm:
    """The structure of the outermost layer of a message, which identifies the level without a key.

    `recipient` is the tag of each RecipientInfo (RFC 5652, 6.2). `kind` is the object identifier at the
    beginning of an OtherRecipientInfo, "" for the other choices. `content` is that of the content encryption.
    """

    recipient: int
    kind: str
    content: str
    kem: KEMForm | None = None


@dataclass(frozen=True, slots=True)
class Level:
    """The properties of a level that need no cryptography.

    `name`: its name in policy files, logs, metrics, records and peer documents; it never changes.
    `number`: an alternative to the name in policy files. It is fixed: a number is never reused for another level,
    whatever the order of levels.
    `form`: the outermost layer that the tripwire requires.
    `algorithms`: its algorithms in audit records.
    `use`: the quantum keys it spends: PADS, SINGLE_KEYS (of 256 bits), or None. A level that spends none is signed,
    and may get one more layer under a quantum key.
    `certificates`: the peer's certificates that it needs beside `signing`, by role (relay/identity/pairs.py).
    """

    name: SealingLevel
    number: int
    form: WireForm
    algorithms: str
    use: KMEUse | None = None
    certificates: tuple[str, ...] = ()

    @property
    def quantum(self) -> bool:
        """Whether the level itself spends quantum keys."""
        return self.use is not None


ID_AES256_GCM = "2.16.840.1.101.3.4.1.46"
ID_ORI_KEM = "1.2.840.113549.1.9.16.13.3"
ID_ONE_TIME_PAD = "2.25.174329942225367338356280624045584076657"
ID_ORI_PAD = "2.25.226859369974843839433125609353476451910"

KEY_TRANSPORT, KEY_AGREEMENT, KEY_ENCRYPTION_KEY, OTHER_RECIPIENT = 0x30, 0xA1, 0xA2, 0xA4
"""Tags of a RecipientInfo: KeyTrans-, KeyAgree-, KEK- and OtherRecipientInfo."""

ML_KEM_1024_P384 = KEMForm("ml-kem-1024-p384", "1.3.6.1.5.5.7.6.63", 1665, 1665)
"""The composite KEM id-MLKEM1024-ECDH-P384-SHA3-256."""
HQC_256 = KEMForm("hqc-256", "2.25.36796463176215983808006340150877474792", 7237, 14_421)
"""Named HQC-5 in the revision of 2025."""
FRODOKEM_1344_SHAKE = KEMForm("frodokem-1344-shake", "2.25.8351164489915347729498619433651132917", 21_520, 21_696)
"""The salted variant."""
CLASSIC_MCELIECE_6688128 = KEMForm(
    "classic-mceliece-6688128", "2.25.105974411719247991520903958512651041581", 1_044_992, 208
)
"""The version of round 4."""
FURTHER_KEMS = (HQC_256, FRODOKEM_1344_SHAKE, CLASSIC_MCELIECE_6688128)
"""KEMs that may wrap pqc as a further layer each. They are no levels, and need liboqs.

The versions in liboqs 0.16 have no object identifier for CMS yet, so ours are used. A revision with other sizes would
be another mechanism, with another identifier.
"""

OTP = Level(
    name="otp",
    number=1,
    form=WireForm(OTHER_RECIPIENT, ID_ORI_PAD, ID_ONE_TIME_PAD),
    algorithms="one-time pad, Poly1305, quantum keys",
    use=PADS,
)
AES = Level(
    name="aes",
    number=2,
    form=WireForm(KEY_ENCRYPTION_KEY, "", ID_AES256_GCM),
    algorithms="AES-256-GCM, AES-256 wrap, quantum key",
    use=SINGLE_KEYS,
)
PQC = Level(
    name="pqc",
    number=3,
    form=WireForm(OTHER_RECIPIENT, ID_ORI_KEM, ID_AES256_GCM, ML_KEM_1024_P384),
    algorithms="ML-KEM-1024 with ECDH P-384, HKDF-SHA256, AES-256 wrap, AES-256-GCM, ML-DSA-87 with ECDSA P-384",
    certificates=("kem",),
)
RSA = Level(
    name="rsa",
    number=4,
    form=WireForm(KEY_TRANSPORT, "", ID_AES256_GCM),
    algorithms="RSAES-OAEP-SHA256, AES-256-GCM, RSASSA-PSS-SHA256",
    certificates=("rsa_encryption", "rsa_signing"),
)

LEVELS: tuple[Level, ...] = (OTP, AES, PQC, RSA)
"""All levels between two relays, strongest first."""
SMIME: Final = "smime"
"""The level for other products (RFC 8551). It has no peer and no sealed envelope, and is sealed by relay/smime."""
SMIME_ALGORITHMS = "AES-256-GCM or AES-256-CBC, RSA or ECDH, signed with RSA or ECDSA"
"""Its algorithms in audit records."""
AES256_CBC = "2.16.840.1.101.3.4.1.42"
SMIME_CONTENTS = (ID_AES256_GCM, AES256_CBC)
SMIME_RECIPIENTS = (KEY_TRANSPORT, KEY_AGREEMENT)
"""Its content encryptions, and the tags of its RecipientInfos."""

SEALING: tuple[SealingLevel, ...] = get_args(SealingLevel)
NAMES: tuple[LevelName, ...] = get_args(LevelName)
"""All that a policy file may list, strongest first."""
ALL_SEALING: tuple[LevelName, ...] = NAMES[:-1]
"""Those of them that seal, with and without a layer under a quantum key around."""
BETWEEN_RELAYS: tuple[LevelName, ...] = tuple(name for name in ALL_SEALING if name != SMIME)
"""Those of them with a sealed envelope."""
QUANTUM: frozenset[LevelName] = frozenset(level.name for level in LEVELS if level.quantum)
"""The levels that spend quantum keys; such a layer is the outermost one."""
SIGNED: frozenset[LevelName] = frozenset(level.name for level in LEVELS if not level.quantum)
"""The levels without quantum keys: they are signed, need certificates, and may get one layer under a quantum key."""
OF_PADS: frozenset[LevelName] = frozenset(level.name for level in LEVELS if level.use == PADS)
"""The levels whose keys are pads."""
ON_TOP: LevelName = AES.name
"""The level whose layer wraps the signed ones."""

BY_NAME: dict[str, Level] = {level.name: level for level in LEVELS}
_STRENGTH: dict[str, int] = {name: strength for strength, name in enumerate(reversed(NAMES))}


def strength(level: LevelName) -> int:
    """How strong a level is, to be compared with another; 0 for plaintext."""
    return _STRENGTH[level]


def bare(level: LevelName) -> LevelName:
    """The level without the additional layer under a quantum key: `pqc` for `pqc+aes`."""
    return next(name for name in NAMES if name == level.partition("+")[0])


def around(kem: KEMForm) -> WireForm:
    """The form of a layer of a further KEM."""
    return replace(PQC.form, kem=kem)


def protections() -> tuple[str, ...]:
    """All protections of mail in log lines, such as `pqc+aes`; those with quantum keys come first."""
    quantum, signed = ([level.name for level in LEVELS if level.quantum is each] for each in (True, False))
    return (*quantum, *(f"{name}+{ON_TOP}" for name in signed), *signed, SMIME)
