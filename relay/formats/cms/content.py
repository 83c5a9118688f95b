"""The kinds of content encryption of AuthEnvelopedData, and their algorithm identifiers as DER.
Standard: RFC 5083; AES-256-GCM (RFC 5084), and the one-time pad of relay/FORMAT.md.

Another kind is a class, its name in `Content`, and a case in `encode` and in `decode`: mypy names the first that lacks.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import lt
from typing import Annotated, assert_never

from cryptography.hazmat import asn1
from cryptography.x509 import ObjectIdentifier

from relay.errors import BadStructure
from relay.formats.characters import casefold, is_printable
from relay.formats.cms import der, oids

TAG_OCTETS = 16
NONCE_OCTETS = 12
PAD_VERSION = 1
MIN_PAD_KEYS, MAX_PAD_KEYS = 2, 65_536
MAX_PARAMETERS_OCTETS = 16 * 1024 * 1024
_MIN_KEY_ID_OCTETS = 3
"""Minimum length of a key_ID in DER; the strict parser stops at one that is shorter."""


@dataclass(frozen=True, slots=True)
class GCMContent:
    """AES-256-GCM with a nonce of 12 octets and a tag of 16 (RFC 5084)."""

    nonce: bytes


@dataclass(frozen=True, slots=True)
class PadContent:
    """One-time pad and one-time Poly1305; everything here is under the tag.

    `compression` is 0 (none) or 1 (DEFLATE, RFC 1951). `key_IDs` ascend as UTF-8 octets, each once: so the receiver
    knows which two keys give the tag's, and nobody can exchange them.
    """

    master_sae: str
    slave_sae: str
    kme_group: str
    compression: int
    key_IDs: tuple[str, ...]

    def encode(self) -> bytes:
        """OneTimePadParameters as DER: what is authenticated beside the ciphertext."""
        octets: bytes = asn1.encode_der(
            _PadParameters(
                version=PAD_VERSION,
                master_sae=self.master_sae,
                slave_sae=self.slave_sae,
                kme_group=self.kme_group,
                compression=self.compression,
                key_ids=list(self.key_IDs),
            )
        )
        return octets


@asn1.sequence
class AnyAlgorithm:
    """An AlgorithmIdentifier whose parameters are looked at before they are parsed."""

    algorithm: ObjectIdentifier
    parameters: asn1.TLV


Content = GCMContent | PadContent


def encode(content: Content) -> bytes:
    """The algorithm identifier, as DER."""
    match content:
        case GCMContent(nonce):
            return _BEFORE_NONCE + nonce + _BEHIND_NONCE
        case PadContent():
            return der.algorithm(oids.ID_ONE_TIME_PAD, content.encode())
        case _:
            assert_never(content)


def decode(algorithm: AnyAlgorithm) -> Content:
    """What an algorithm identifier says; anything that no level uses is BadStructure."""
    if algorithm.algorithm == oids.ID_AES256_GCM:
        gcm = der.parse(_GCMParameters, algorithm.parameters, "GCM parameters")
        if gcm.icv_length != TAG_OCTETS:
            raise BadStructure("the authentication tag is not 16 octets")
        if len(gcm.nonce) != NONCE_OCTETS:
            raise BadStructure("the nonce is not 12 octets")
        return GCMContent(gcm.nonce)
    if algorithm.algorithm == oids.ID_ONE_TIME_PAD:
        if len(algorithm.parameters.data) > MAX_PARAMETERS_OCTETS:
            raise BadStructure("the list of pad keys is too long")
        fields = der.children(algorithm.parameters.data, 6)
        if not fields or bytes(fields[0]) != bytes((PAD_VERSION,)):
            number = der.shown(int.from_bytes(fields[0][:64])) if fields else "missing"
            raise BadStructure(
                f"one-time pad version {number}; {PAD_VERSION} is the only one: its sender must be upgraded"
            )
        for key_IDs in fields[5:]:
            if len(key_IDs) > MAX_PAD_KEYS * _MIN_KEY_ID_OCTETS:
                der.children(key_IDs, MAX_PAD_KEYS, kept=False)
        pad = der.parse(_PadParameters, algorithm.parameters, "one-time pad parameters")
        return _decode_pad(pad)
    raise BadStructure(
        f"content encryption {algorithm.algorithm.dotted_string} is neither AES-256-GCM nor one-time pad"
    )


def _decode_pad(pad: _PadParameters) -> PadContent:
    if pad.compression not in (0, 1):
        raise BadStructure(f"compression {der.shown(pad.compression)} is unknown")
    key_IDs = tuple(pad.key_ids)
    if not MIN_PAD_KEYS <= len(key_IDs) <= MAX_PAD_KEYS:
        raise BadStructure(f"the pad has {len(key_IDs)} keys; {MIN_PAD_KEYS} to {MAX_PAD_KEYS} are accepted")
    # There may be thousands: each look is one at all of them.
    if not is_printable("".join(key_IDs)):
        raise BadStructure("a key_ID is not 1 to 256 printable characters")
    if not all(map(lt, key_IDs, key_IDs[1:])):  # code points are in the order of their UTF-8 octets
        raise BadStructure("the key_IDs of the pad do not ascend, each once")
    if len(set(casefold("\n".join(key_IDs)).split("\n"))) != len(key_IDs):
        raise BadStructure("the pad names one key twice, in other letters")
    return PadContent(pad.master_sae, pad.slave_sae, pad.kme_group, pad.compression, key_IDs)


_GCM = der.algorithm(
    oids.ID_AES256_GCM, der.sequence(der.element(der.OCTET_STRING, bytes(NONCE_OCTETS)), der.integer(TAG_OCTETS))
)
_BEFORE_NONCE, _BEHIND_NONCE = _GCM.split(bytes(NONCE_OCTETS))


@asn1.sequence
class _GCMParameters:
    nonce: bytes
    icv_length: Annotated[int, asn1.Default(12)]


@asn1.sequence
class _PadParameters:
    version: int
    master_sae: Annotated[str, asn1.Size(min=1, max=256)]
    slave_sae: Annotated[str, asn1.Size(min=1, max=256)]
    kme_group: Annotated[str, asn1.Size(min=1, max=256)]
    compression: int
    key_ids: list[Annotated[str, asn1.Size(min=1, max=256)]]
