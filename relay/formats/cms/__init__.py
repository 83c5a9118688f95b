"""The CMS structures of sealed messages, encoded and decoded as DER; no cryptography, no I/O.
Standard: RFC 5652 (CMS); relay/FORMAT.md specifies the whole format.

| read | for |
|---|---|
| enveloped.py | AuthEnvelopedData (RFC 5083): content encryption, tag, what a received key may open |
| recipients.py | the kinds of RecipientInfo: quantum key, KEM, RSA, one-time pad |
| signed.py | SignedData with one signer (RFC 5652, 5) |
| smime_enveloped.py, smime_signed.py | the same structures as other software writes them (level smime) |
| ber.py | conversion of other software's BER into DER |
| sealed_envelope.py | the payload's metadata: id, sites, layers, time, sender, recipients |
| der.py, oids.py | writing and reading DER elements; object identifiers |
"""

from relay.formats.cms.enveloped import (
    NONCE_OCTETS,
    TAG_OCTETS,
    AuthEnveloped,
    GCMContent,
    KeyUse,
    PadContent,
    decode_enveloped,
    encode_enveloped,
    enveloped_pieces,
)
from relay.formats.cms.oids import QUANTUM_KEY_NAMES
from relay.formats.cms.recipients import (
    FURTHER_KEMS,
    KEMS,
    KEY_IDENTIFIER_OCTETS,
    ML_KEM_1024_P384,
    CertificateID,
    KEKRecipient,
    KEMRecipient,
    PadRecipient,
    QKDKeyAttribute,
    RSARecipient,
    kem_kdf_info,
)
from relay.formats.cms.sealed_envelope import (
    Ends,
    SealedEnvelope,
    decode_sealed_envelope,
    is_recipient,
    is_sender,
    read_sealed_envelope,
)
from relay.formats.cms.signed import (
    SignatureScheme,
    Signed,
    attributes_to_sign,
    decode_signed,
    encode_signed,
    signed_pieces,
)

__all__ = [
    "FURTHER_KEMS",
    "KEMS",
    "KEY_IDENTIFIER_OCTETS",
    "ML_KEM_1024_P384",
    "NONCE_OCTETS",
    "QUANTUM_KEY_NAMES",
    "TAG_OCTETS",
    "AuthEnveloped",
    "CertificateID",
    "Ends",
    "GCMContent",
    "KEKRecipient",
    "KEMRecipient",
    "KeyUse",
    "PadContent",
    "PadRecipient",
    "QKDKeyAttribute",
    "RSARecipient",
    "SealedEnvelope",
    "SignatureScheme",
    "Signed",
    "attributes_to_sign",
    "decode_enveloped",
    "decode_sealed_envelope",
    "decode_signed",
    "encode_enveloped",
    "encode_signed",
    "enveloped_pieces",
    "is_recipient",
    "is_sender",
    "kem_kdf_info",
    "read_sealed_envelope",
    "signed_pieces",
]
