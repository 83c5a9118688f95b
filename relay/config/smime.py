"""The table [smime] of relay.toml: this site's own S/MIME certificates, and what partners' programs can read.
Standard: RFC 8551; the text under a setting is its documentation (reference.py), with its default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BeforeValidator

from relay.config.values import MailboxSetting, PathSetting, as_tuple, parse_domain
from relay.files import toml

ALL_PARTNERS = "*"


def _parse_partner(value: str) -> str:
    return value if value == ALL_PARTNERS else parse_domain(value)


Partners = Annotated[tuple[Annotated[str, AfterValidator(_parse_partner)], ...], BeforeValidator(as_tuple)]
"""Mail domains, or "*" for all."""


class SMIMEKeySettings(toml.Table):
    """A certificate of this site, and its private key, RSA (2048 bits or more), P-256 or P-384."""

    examples: ClassVar[Mapping[str, object]] = {
        "certificate": "/etc/qumail-relay/smime/alice.example.pem",
        "key": "/etc/qumail-relay/smime/alice.example.key",
        "passphrase": "/etc/qumail-relay/smime/alice.example.pass",
    }

    certificate: PathSetting
    """A PEM file: the certificate, then those of its CAs up to the root. Or a PKCS#12 file, with the key."""
    key: PathSetting | None = None
    """The private key in PEM, readable by the relay only; left out for PKCS#12."""
    passphrase: PathSetting | None = None
    """A file with the passphrase of the key or the PKCS#12 file as its first line, readable by the relay only."""
    mailboxes: Annotated[tuple[MailboxSetting, ...], BeforeValidator(as_tuple)] = ()
    """The mailboxes of the key's owner, a person. By default the key is the whole site's, and signs."""


class SMIMESettings(toml.Table):
    """S/MIME with other organisations' gateways and with people: level smime (deploy/SMIME.md), unavailable without
    this table. A change counts from a restart.
    """

    examples: ClassVar[Mapping[str, object]] = {
        "certificates": "/etc/qumail-relay/certificates",
        "anchors": ["/etc/qumail-relay/smime/anchors.pem"],
        "crls": ["/etc/qumail-relay/smime/ca.crl"],
        "cbc": ["bob.example"],
        "pkcs1": ["bob.example"],
    }

    certificates: PathSetting | None = None
    """The directory of other people's and gateways' certificates (`qumail-relay certificates`); by default
    `certificates` beside policies.directory.
    """
    keys: Annotated[tuple[SMIMEKeySettings, ...], BeforeValidator(as_tuple)] = ()
    """One table for each certificate of this site: the first that may sign signs all mail at level smime. Keep older
    ones as long as mail for them may arrive.
    """
    anchors: Annotated[tuple[PathSetting, ...], BeforeValidator(as_tuple)] = ()
    """PEM files with CA certificates: signers under these CAs count for the address in their certificate. By default
    only certificates in the directory count.
    """
    crls: Annotated[tuple[PathSetting, ...], BeforeValidator(as_tuple)] = ()
    """CRLs of these CAs, one a file, PEM or DER, at most 3 MiB. The relay fetches none: keep them current. A signature
    under a CA whose CRL has ended is not good.
    """
    cbc: Partners = ()
    """Domains whose programs lack AES-256-GCM; "*": all. They get AES-256-CBC, without protection against changes on
    the way. So do certificates whose SMIMECapabilities have CBC and not GCM.
    """
    pkcs1: Partners = ()
    """Domains whose programs lack RSAES-OAEP; "*": all. They get RSA encryption by PKCS#1 v1.5."""
