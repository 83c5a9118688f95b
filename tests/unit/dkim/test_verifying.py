"""What we say of signatures that others made: valid, changed, weak, old, or made to hurt.
Standard: RFC 6376 6, RFC 8301, RFC 8601 2.7.1; no mail is held for any of them.
"""

from __future__ import annotations

import base64
import subprocess
import threading
import time
from collections.abc import Sequence

import dkim
import pytest
from cryptography.hazmat.primitives import serialization

from relay.dkim import AuthResult, KeyRecords, SigningKey, Verifier, arc, checking, verifying
from relay.dkim.canonical import Header, body_hash
from relay.dkim.signing import signed_field, signed_names
from relay.formats import mime
from tests.testlib import mails
from tests.testlib.zone import Zone
from tests.unit.dkim.conftest import Keys, pem

NOW = int(time.time())
MESSAGE = mails.plain()


def signed(key: SigningKey, message: bytes = MESSAGE, names: Sequence[bytes] | None = None, **changed: str) -> bytes:
    """The message under a signature with other tags than usual; those set to "" are left out."""
    header, body = mime.split(message)
    names = signed_names(Header(header)) if names is None else names
    limit = int(changed["l"]) if changed.get("l", "").isdigit() else None
    tags = {
        "v": "1",
        "a": f"{key.algorithm}-sha256",
        "c": "relaxed/relaxed",
        "d": key.domain,
        "s": key.selector,
        "t": str(NOW),
        "h": ":".join(name.decode() for name in names),
        "bh": base64.b64encode(body_hash(body, limit=limit).digest).decode(),
        **changed,
    }
    chosen = b"".join(Header(header).chosen(names))
    return signed_field("DKIM-Signature", [item for item in tags.items() if item[1]], chosen, key) + message


async def verdict(verifier: Verifier, message: bytes) -> AuthResult:
    [result] = (await verifier.both(message))[:-1]
    return result


@pytest.mark.parametrize("c", [(a, b) for a in (b"simple", b"relaxed") for b in (b"simple", b"relaxed")])
@pytest.mark.parametrize("message", [mails.plain(), mails.eight_bit(), mails.random_attachment()])
async def test_what_dkimpy_signs_passes_in_every_canonicalisation(
    verifier: Verifier, keys: Keys, c: tuple[bytes, bytes], message: bytes
) -> None:
    field = dkim.sign(message, b"r", b"alice.example", pem(keys.rsa), canonicalize=c)
    result = await verdict(verifier, field + message)
    assert (result.result, result.reason) == ("pass", "")
    assert result.properties[:3] == (("header.d", "alice.example"), ("header.s", "r"), ("header.a", "rsa-sha256"))


async def test_what_dkimpy_signs_with_ed25519_passes(verifier: Verifier, keys: Keys) -> None:
    seed = keys.ed25519.private.private_bytes(
        serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
    )
    signer = dkim.DKIM(MESSAGE, signature_algorithm=b"ed25519-sha256")
    field = signer.sign(b"e", b"alice.example", base64.b64encode(seed))
    assert (await verdict(verifier, field + MESSAGE)).result == "pass"


async def test_ed25519_passes_and_a_changed_body_fails(verifier: Verifier, keys: Keys) -> None:
    message = signed(keys.ed25519)
    assert (await verdict(verifier, message)).result == "pass"
    result = await verdict(verifier, message.replace(b" 42 ", b" 43 "))
    assert (result.result, result.reason) == ("fail", "the body was changed")


async def test_a_message_without_signatures_has_none(verifier: Verifier, zone: Zone) -> None:
    assert [str(result) for result in await verifier.both(MESSAGE)] == ["dkim=none", "arc=none"]
    assert zone.asked == []


@pytest.mark.parametrize(
    ("changed", "result", "reason"),
    [
        ({"l": "10"}, "policy", "l= leaves 18 octets of the body unsigned"),
        ({"l": "0"}, "policy", "l= leaves 28 octets of the body unsigned"),
        ({"l": "28"}, "pass", ""),
        ({"l": "29"}, "permerror", "l= is more than the body has"),
        ({"l": "9" * 90}, "permerror", "l= value is not a decimal integer"),
        ({"x": "now -86400", "t": "now -90000"}, "permerror", "x= value is past"),
        ({"x": "now -600", "t": "now -700"}, "permerror", "x= value is past"),
        ({"x": "now -60", "t": "now -700"}, "pass", ""),
        ({"x": "now +86400"}, "pass", ""),
        ({"t": "now +600"}, "permerror", "t= value is in the future"),
        ({"t": "now +100"}, "pass", ""),
        ({"t": "now +86400"}, "permerror", "t= value is in the future"),
        ({"t": "9" * 5000}, "permerror", ""),
        ({"a": "rsa-sha1"}, "permerror", "rsa-sha1 is no longer accepted"),
        ({"a": "rot13-sha256"}, "permerror", "unknown signature algorithm"),
        ({"c": "relaxed/relaxed/relaxed"}, "permerror", "unknown canonicalisation"),
        ({"d": "al ice.example"}, "permerror", "d= or s= is not a domain"),
        ({"s": "no"}, "permerror", "there is no key in the DNS"),
        ({"s": "e"}, "permerror", "the key is for another algorithm"),
        ({"i": "@eve.example"}, "permerror", "i= domain is not a subdomain of d="),
        ({"i": "alice.example"}, "permerror", "tags that cannot be"),
        ({"bh": ""}, "permerror", "missing b'bh'="),
        ({"bh": "????"}, "permerror", "bh= is not base64"),
        ({"v": "2"}, "permerror", "v= value is not 1"),
        ({"h": "to:subject"}, "permerror", "From is not signed"),
    ],
)
async def test_each_odd_signature_has_its_result(
    verifier: Verifier, keys: Keys, changed: dict[str, str], result: str, reason: str
) -> None:
    names = [b"to", b"subject"] if "h" in changed else None
    now = int(time.time())
    at = {tag: str(now + int(value[4:])) if value.startswith("now ") else value for tag, value in changed.items()}
    found = await verdict(verifier, signed(keys.rsa, MESSAGE, names, **at))
    assert (found.result, found.reason if reason else "") == (result, reason)
    str(found).encode("ascii")


@pytest.mark.parametrize(
    ("record", "result", "reason"),
    [
        ("{record}; t=y", "neutral", "the key is marked as being tested"),
        ("{record}; h=sha1", "permerror", "the key is for another hash"),
        ("{record}; h=sha1:sha256; s=email; x=new", "pass", ""),
        ("{record}; s=tlsrpt", "permerror", "the key is not for mail"),
        ("{record}; p=twice", "permerror", "what the DNS has is no key record"),
        ("v=DKIM1; p=", "permerror", "the key was revoked"),
        ("v=DKIM1; p=AAAA", "permerror", "the key cannot be read"),
        ("v=DKIM2; p=AAAA", "permerror", "what the DNS has is no key record"),
        ("some other text", "permerror", "what the DNS has is no key record"),
    ],
)
async def test_each_odd_key_record_has_its_result(
    verifier: Verifier, keys: Keys, zone: Zone, record: str, result: str, reason: str
) -> None:
    zone.texts[keys.rsa.name] = record.format(record=keys.rsa.record).encode()
    found = await verdict(verifier, signed(keys.rsa))
    assert (found.result, found.reason) == (result, reason)


async def test_a_key_that_is_not_for_subdomains_is_for_its_domain_only(
    verifier: Verifier, keys: Keys, zone: Zone
) -> None:
    zone.texts[keys.rsa.name] += b"; t=s"
    assert (await verdict(verifier, signed(keys.rsa, i="ann@alice.example"))).result == "pass"
    assert (await verdict(verifier, signed(keys.rsa, i="ann@sub.alice.example"))).result == "permerror"


async def test_weak_keys_are_told_and_weaker_ones_never_pass(verifier: Verifier, keys: Keys, zone: Zone) -> None:
    found = await verdict(verifier, signed(keys.weak))
    assert (found.result, found.reason) == ("pass", "weak RSA key of 1024 bits")
    command = ["sh", "-c", "openssl genrsa 512 | openssl rsa -pubout -outform DER"]
    tiny = subprocess.run(command, capture_output=True, check=True).stdout
    zone.texts["tiny._domainkey.alice.example"] = b"v=DKIM1; p=" + base64.b64encode(tiny)
    found = await verdict(verifier, signed(keys.rsa, s="tiny"))
    assert (found.result, found.reason) == ("fail", "RSA key of 512 bits")


async def test_a_second_author_on_top_of_the_signed_one_fails(verifier: Verifier, keys: Keys) -> None:
    once = signed(keys.rsa, names=[b"from", b"subject"])
    assert (await verdict(verifier, once)).result == "pass"
    assert (await verdict(verifier, b"From: eve@eve.example\r\n" + once)).result == "fail"


async def test_dns_trouble_is_a_temperror_that_is_not_remembered(keys: Keys, zone: Zone) -> None:
    verifier = Verifier(KeyRecords(timeout=1, servers=[zone.address]))
    for trouble in (zone.failing, zone.silent):
        trouble.add(keys.rsa.name)
        found = await verdict(verifier, signed(keys.rsa))
        assert (found.result, found.reason) == ("temperror", "the DNS did not answer")
        trouble.clear()
    assert (await verdict(verifier, signed(keys.rsa))).result == "pass"


async def test_a_key_is_asked_for_once_as_long_as_it_may_be_kept(verifier: Verifier, keys: Keys, zone: Zone) -> None:
    for _ in range(3):
        assert (await verdict(verifier, signed(keys.rsa))).result == "pass"
    assert zone.asked == [keys.rsa.name]


async def test_of_thousands_of_signatures_the_first_ones_are_looked_at(
    verifier: Verifier, keys: Keys, zone: Zone
) -> None:
    field = signed(keys.rsa)[: -len(MESSAGE)]
    others = b"".join(field.replace(b"s=r;", b"s=r%d;" % number) for number in range(1500))
    results = (await verifier.both(field + others + MESSAGE))[:-1]
    assert [each.result for each in results] == ["pass", *["permerror"] * 9, "policy"]
    assert results[-1].reason == "only 10 of 1501 signatures were looked at"
    assert len(zone.asked) == 10


@pytest.mark.parametrize(
    "field",
    [
        b"DKIM-Signature: \r\n",
        b"DKIM-Signature: ;;;;\r\n",
        b"DKIM-Signature: v\r\n",
        b"DKIM-Signature: v=1; v=1\r\n",
        b"DKIM-Signature: \xff=\xfe; d=\xe4\r\n",
        b"DKIM-Signature: v=1; a=rsa-sha256; d=a; s=b; h=from; bh=" + b"A" * 9000 + b"; b=AAAA\r\n",
        b"DKIM-Signature: v=1; a=rsa-sha256; d=a; s=b; h=from; bh=AAAA; b=" + b"\r\n " * 2600 + b";\r\n",
        b"DKIM-Signature: v=1; a=rsa-sha256; d=" + b"a." * 300 + b"; s=b; h=from; bh=AAAA; b=AAAA\r\n",
    ],
)
async def test_malformed_signatures_are_permerrors_and_nothing_is_asked(
    verifier: Verifier, zone: Zone, field: bytes
) -> None:
    found = await verdict(verifier, field + MESSAGE)
    assert found.result == "permerror"
    assert str(found).isascii()
    assert zone.asked == []


async def test_a_signature_with_thousands_of_names_over_thousands_of_fields_takes_linear_time(
    verifier: Verifier, keys: Keys
) -> None:
    names = [b"from", *(b"%x" % number for number in range(1500))]
    header = b"".join(b"%x: y\r\n" % number for number in range(18_000))
    assert (await verdict(verifier, signed(keys.rsa, header + MESSAGE, names))).result == "pass"


@pytest.mark.parametrize("field", [b"ARC-Seal: i=1; d=a; s=b\r\n", b"DKIM-Signature: v=1; d=a; s=b\r\n"])
async def test_many_signatures_are_read_in_a_thread_however_small_the_message(
    verifier: Verifier, monkeypatch: pytest.MonkeyPatch, field: bytes
) -> None:
    where: set[int] = set()

    def noting(raw: bytes) -> dict[bytes, bytes]:
        where.add(threading.get_ident())
        return checking.parse_tags(raw)

    monkeypatch.setattr(arc, "parse_tags", noting)
    monkeypatch.setattr(verifying, "parse_tags", noting)
    await verifier.both(field * 100 + MESSAGE)
    assert where
    assert threading.get_ident() not in where
