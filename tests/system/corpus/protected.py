"""What others have signed or encrypted, and what pretends to be sealed by us: all of it travels unchanged.
Standard: RFC 8551 (S/MIME), RFC 3156 and 9580 (PGP), RFC 6376 (DKIM), RFC 8617 (ARC).
"""

from __future__ import annotations

import base64
from collections.abc import Iterator

from tests.system.corpus.case import Case, carried, mail, mime
from tests.system.corpus.structure import multipart

CMS = base64.encodebytes(bytes.fromhex("308006092a864886f70d010703a08030800201000000")).decode().replace("\n", "\r\n")
SIGNED_PART = "Content-Type: text/plain; charset=utf-8\r\n\r\nSigned: blanks at the end \r\nand =3D stay\r\n"
ARMOUR = "-----BEGIN PGP {0}-----\r\n\r\nwcDMA0000000000000AQv/abc=\r\n=abcd\r\n-----END PGP {0}-----\r\n"
SEALED = "application/pkcs7-mime; smime-type=authEnveloped-data; name=smime.p7m"

DKIM = (
    "DKIM-Signature: v=1; a=rsa-sha256; c={c}; d=alice.example; s=s1;\r\n\th=from : to:Subject;  bh=47DEQpj8HBSa+/"
    "TImW+5JCeuQeRkm5NMpJWZG3hSuFU=;\r\n\t b=AAAA\r\n\t BBBB==\r\nSubject:   two  blanks\t\r\n"
)
ARC = "".join(
    f"ARC-Seal: i={n}; a=rsa-sha256; cv={'pass' if n > 1 else 'none'}; d=list{n}.example; s=s; b=AA==\r\n"
    f"ARC-Message-Signature: i={n}; a=rsa-sha256; c=relaxed/relaxed;\r\n d=list{n}.example; s=s; h=from; bh=AA==; b=AA==\r\n"
    f"ARC-Authentication-Results: i={n}; list{n}.example; dkim=pass\r\n"
    for n in (3, 2, 1)
)
AUTH_RESULTS = "Authentication-Results: relay.bob.example; dkim=pass header.d=alice.example\r\n"

LOOK_ALIKES = {
    "and-no-body": (SEALED, "", "base64"),
    "and-text": (SEALED, "This is no base64 at all.\r\n", "base64"),
    "and-other-cms": (SEALED, CMS, "base64"),
    "and-truncated": (SEALED, "MIIBAgYLKoZIhvcNAQkQARc=\r\n", "base64"),
    "in-quoted-printable": (SEALED, "=30=80\r\n", "quoted-printable"),
    "by-its-other-name": (SEALED.replace("authEnv", "authenticated-Env"), CMS, "base64"),
    "as-an-x-type": (SEALED.replace("/pkcs7", "/x-pkcs7"), CMS, "base64"),
    "in-capitals": (SEALED.upper(), CMS, "BASE64"),
    "as-a-parameter-of-text": ("text/plain; smime-type=authEnveloped-data", "Text\r\n", "7bit"),
    "with-bad-parameters": (SEALED + '; smime-type*="; smime-type*0*=x; "', CMS, "base64"),
    "with-a-parameter-in-a-charset": (SEALED.replace("type=", "type*=utf-16'en'"), CMS, "base64"),
}


def cases() -> Iterator[Case]:
    """S/MIME, PGP, DKIM and ARC, then the look-alikes."""
    signature = "Content-Type: application/{0}\r\nContent-Transfer-Encoding: base64\r\n\r\n" + CMS
    smime = 'signed; protocol="application/pkcs7-signature"; micalg=sha-256'
    yield carried("smime-signed", multipart(smime, "s", [SIGNED_PART, signature.format("pkcs7-signature")]))
    yield carried(
        "smime-signed-opaque", mime("application/pkcs7-mime; smime-type=signed-data; name=smime.p7m", CMS, "base64")
    )
    yield carried("smime-enveloped-by-others", mime("application/pkcs7-mime; smime-type=enveloped-data", CMS, "base64"))
    yield carried("smime-compressed", mime("application/pkcs7-mime; smime-type=compressed-data", CMS, "base64"))
    yield carried("smime-certificates-only", mime("application/pkcs7-mime; smime-type=certs-only", CMS, "base64"))
    yield carried("smime-without-a-type", mime("application/pkcs7-mime", CMS, "base64"))
    pgp = 'signed; protocol="application/pgp-signature"; micalg=pgp-sha512'
    detached = "Content-Type: application/pgp-signature\r\n\r\n" + ARMOUR.format("SIGNATURE")
    yield carried("pgp-signed", multipart(pgp, "s", [SIGNED_PART, detached]))
    encrypted = 'encrypted; protocol="application/pgp-encrypted"'
    version = "Content-Type: application/pgp-encrypted\r\n\r\nVersion: 1\r\n"
    content = "Content-Type: application/octet-stream\r\n\r\n" + ARMOUR.format("MESSAGE")
    yield carried("pgp-encrypted", multipart(encrypted, "e", [version, content]))
    yield carried("pgp-inline-encrypted", mail("", ARMOUR.format("MESSAGE")))
    clear = "-----BEGIN PGP SIGNED MESSAGE-----\r\nHash: SHA512\r\n\r\n- -- \r\nText \r\n"
    yield carried("pgp-inline-signed", mail("", clear + ARMOUR.format("SIGNATURE")))
    yield carried("pgp-key", mime("application/pgp-keys", ARMOUR.format("PUBLIC KEY BLOCK")))
    yield carried("dkim-simple", mail(DKIM.format(c="simple/simple"), "Text  \r\n\r\n\r\n"))
    yield carried("dkim-relaxed", mail(DKIM.format(c="relaxed/relaxed"), "Text  \r\n\r\n\r\n"))
    yield carried("dkim-1000-signatures", mail(DKIM.format(c="simple/simple") * 1000))
    yield carried("arc-chain", mail(AUTH_RESULTS + ARC))
    for name, (kind, body, encoding) in LOOK_ALIKES.items():
        yield carried(f"looks-sealed-{name}", mime(kind, body, encoding))
