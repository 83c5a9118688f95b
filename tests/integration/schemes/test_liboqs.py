"""Further KEMs around level pqc: refused without liboqs, with the way to install it; with it, one more layer each.
Nothing is downloaded; a stand-in is in the place of liboqs where that is not installed.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pyasn1.codec.der.decoder import decode as pyasn1_decode
from pyasn1.codec.der.encoder import encode as pyasn1_encode
from pyasn1.type.univ import ObjectIdentifier
from pyasn1_alt_modules import rfc5083, rfc5652, rfc9629

from relay.cli.check import check as check_command
from relay.cli.identity import identity as identity_command
from relay.cli.output import plain_console
from relay.cli.policy import policy as policy_command
from relay.cli.policy_print import print_explanation
from relay.config import TCPAddress, load_config
from relay.errors import (
    BadSignature,
    BadStructure,
    BadTag,
    CannotOpen,
    ConfigError,
    KEMUnavailable,
    NotForUs,
    PolicyHolds,
)
from relay.formats import cms, mime
from relay.formats.cms import FURTHER_KEMS, KEMS
from relay.identity import (
    Identity,
    PeerCertificates,
    create_identity,
    identity_findings,
    liboqs,
    load_identity,
    make_passphrase,
    peer_document,
    read_document,
    renew_identity,
)
from relay.identity.document import BadDocument, write_document
from relay.journey.sealing import SealedCopy
from relay.kme import DevelopmentKMEs
from relay.mail import Envelope, Mail, Recipient
from relay.policy.content import MessageFacts
from relay.policy.findings import kems_not_here
from relay.policy.load import load_policies
from relay.process import assembly
from relay.schemes import Scheme
from relay.schemes.aes import AES
from relay.schemes.further_kem import FurtherKEM
from relay.schemes.pqc import PQC
from tests.testlib import mails
from tests.testlib.identities import Identities, Person
from tests.testlib.keys import MemoryKeys
from tests.testlib.payloads import payload
from tests.testlib.sites import Site, make_site
from tests.testlib.stand_in_oqs import stand_in

ROOT = Path(__file__).parents[3]
HQC = "hqc-256"
MISSING = liboqs.missing()
"""Asked before any test puts something in the place of the library."""
FAMILIES = pytest.mark.parametrize("kem", FURTHER_KEMS)
ALL_KEMS = f'["ml-kem-1024", {", ".join(map(repr, FURTHER_KEMS))}]'


def use(monkeypatch: pytest.MonkeyPatch, library: object) -> None:
    """As if this were what looking for liboqs had found."""
    monkeypatch.setattr(liboqs, "_load", lambda: library)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real library where it is installed, else the stand-in."""
    if liboqs.missing():
        use(monkeypatch, stand_in())


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, f"the native library liboqs is missing: {liboqs.INSTALL}")


def with_kems(person: Person, directory: Path, name: str, sae: str, kems: tuple[str, ...] = FURTHER_KEMS) -> Person:
    """A copy of a site with keys for further KEMs."""
    shutil.copytree(person.directory, directory)
    identity = create_identity(directory, name=name, domains=[f"{name}.example"], kems=kems)
    return Person(directory, identity, document(directory, identity, name, sae))


def document(directory: Path, identity: Identity, name: str, sae: str) -> bytes:
    return peer_document(
        directory, identity, name=name, domains=[f"{name}.example"], sae_id=sae, kme_groups=["alice-bob"],
        levels=("otp", "aes", "pqc", "rsa"),
    )  # fmt: skip


@pytest.fixture
def people(library: None, identities: Identities, tmp_path: Path) -> Identities:
    """Alice, Eve, and Bob with keys for all further KEMs."""
    return replace(identities, bob=with_kems(identities.bob, tmp_path / "bob-identity", "bob", "1"))


# The library: how it is looked for, and what the real one does


def python(script: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with a home of its own and no other program that it could start."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    clean = {"HOME": str(tmp_path), "PATH": str(tmp_path / "bin"), "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env=clean,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_without_the_native_library_nothing_is_downloaded_and_the_way_to_install_it_is_said(tmp_path: Path) -> None:
    for program in ("git", "cmake"):
        path = tmp_path / "bin" / program
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n: > {tmp_path}/started\n")
        path.chmod(0o755)
    # `oqs` would wait for five seconds before it begins; ours never comes so far.
    script = "import sys; from relay.identity import liboqs; print(liboqs.unavailable('hqc-256')); print('oqs' in sys.modules)"
    said = python(script, tmp_path, OQS_INSTALL_PATH=str(tmp_path / "nowhere"))
    if said.stdout.startswith("\n"):
        pytest.skip("the system's loader finds liboqs on this machine, so it cannot be missing")
    assert said.returncode == 0, said.stderr
    assert "liboqs" in said.stdout
    assert "pip install liboqs-python" in said.stdout
    assert said.stdout.endswith("False\n"), "it was not even imported"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin"]


def test_a_damaged_native_library_is_said_and_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "liboqs.so").write_bytes(b"no library")
    script = "from relay.identity import liboqs; print(liboqs.missing())"
    said = python(script, tmp_path, OQS_INSTALL_PATH=str(tmp_path))
    if said.stdout == "\n":
        pytest.skip("the system's loader finds liboqs on this machine")
    assert "cannot be loaded" in said.stdout
    assert "liboqs.so" in said.stdout


def test_without_the_python_package_the_way_to_install_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "oqs", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "Python package liboqs-python is missing" in str(liboqs._load.__wrapped__())


@pytest.mark.parametrize("fault", ["raise SystemExit('Could not load')", "raise RuntimeError('no')", "import no_such"])
def test_an_import_that_fails_or_wants_to_end_the_process_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    (tmp_path / "oqs.py").write_text(f"import os\nassert os.environ['PYOQS_VERSION'] == 'disabled'\n{fault}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "oqs", raising=False)
    monkeypatch.setattr(liboqs, "_no_native_library", lambda: "")
    monkeypatch.setenv("PYOQS_VERSION", "0.16.0")
    assert "does not load" in str(liboqs._load.__wrapped__())
    assert os.environ["PYOQS_VERSION"] == "0.16.0"


def test_nothing_is_imported_when_the_relay_starts(tmp_path: Path) -> None:
    script = "import sys, relay.cli, relay.process.app; print([name for name in sys.modules if name.startswith('oqs')])"
    assert python(script, tmp_path).stdout == "[]\n"


def test_a_library_without_the_algorithm_or_with_another_revision_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, stand_in("HQC-5"))
    assert "liboqs on this machine (0.16.0) does not have it" in liboqs.unavailable(HQC)
    other = stand_in()
    monkeypatch.setattr(other, "get_enabled_kem_mechanisms", lambda: ("HQC-256",))
    monkeypatch.setitem(sys.modules["tests.testlib.stand_in_oqs"].__dict__["_SIZES"], "HQC-256", (7245, 7317, 14_421))
    use(monkeypatch, other)
    assert "does not have it as our format wants it" in liboqs.unavailable(HQC)
    assert "not a KEM" in liboqs.unavailable("rot13")


@pytest.mark.usefixtures("library")
@FAMILIES
def test_each_kem_agrees_on_a_secret_and_another_key_gets_another(kem: str) -> None:
    ours, others = liboqs.generate(kem), liboqs.generate(kem)
    secret, ciphertext = liboqs.encapsulate(kem, ours.public_key)
    assert (len(ours.public_key), len(ciphertext)) == (KEMS[kem].public_key_octets, KEMS[kem].ciphertext_octets)
    assert len(secret) == 32
    assert liboqs.decapsulate(kem, ours.private_key, ciphertext) == secret
    assert liboqs.decapsulate(kem, others.private_key, ciphertext) != secret
    assert repr(ours) == "KEMKeys()"


@pytest.mark.usefixtures("library")
@FAMILIES
def test_keys_and_ciphertexts_of_another_size_never_reach_the_library(kem: str) -> None:
    keys = liboqs.generate(kem)
    _, ciphertext = liboqs.encapsulate(kem, keys.public_key)
    with pytest.raises(KEMUnavailable, match="public key"):
        liboqs.encapsulate(kem, keys.public_key[:-1])
    with pytest.raises(KEMUnavailable, match="another release"):
        liboqs.decapsulate(kem, keys.private_key + b"\0", ciphertext)
    for wrong in (ciphertext[:-1], ciphertext + b"\0", b""):
        with pytest.raises(BadTag):
            liboqs.decapsulate(kem, keys.private_key, wrong)


# The layer


@FAMILIES
@pytest.mark.parametrize("size", [0, 1, 400_000])
async def test_what_a_layer_seals_it_opens(people: Identities, kem: str, size: int) -> None:
    payload = os.urandom(size)
    layer = FurtherKEM(kem)
    assert layer.obstacle(people.to_bob()) == ""
    enveloped = cms.decode_enveloped((await layer.seal(payload, people.to_bob(), MemoryKeys(number=0))).der)
    levels: list[Scheme] = [PQC(), AES(), *map(FurtherKEM, FURTHER_KEMS)]
    assert [each.name for each in levels if each.recognises(enveloped)] == [kem]
    assert layer.references(enveloped) == ()
    unsealed = await layer.open(enveloped, people.at_bob())
    assert (unsealed.payload, unsealed.signed_by) == (payload, None)


@FAMILIES
async def test_flipped_bits_and_another_key_are_noticed(people: Identities, kem: str, tmp_path: Path) -> None:
    layer = FurtherKEM(kem)
    der = (await layer.seal(b"pay 100 to Bob", people.to_bob(), MemoryKeys())).der
    for position in [*range(0, len(der), 997), *range(len(der) - 40, len(der))]:
        changed = bytearray(der)
        changed[position] ^= 0x04
        with pytest.raises(CannotOpen):
            await layer.open(cms.decode_enveloped(bytes(changed)), people.at_bob())
    stranger = with_kems(people.eve, tmp_path / "eve", "eve", "3", (kem,))
    enveloped = cms.decode_enveloped(der)
    for identity in (stranger.identity, people.alice.identity, None):
        with pytest.raises(NotForUs):
            await layer.open(enveloped, replace(people.at_bob(), identity=identity))
    [theirs] = stranger.identity.further_kems
    [mine] = [pair for pair in people.bob.identity.further_kems if pair.name == kem]
    wrong = replace(people.bob.identity, further_kems=(replace(mine, private_key=theirs.private_key),))
    with pytest.raises(BadTag):
        await layer.open(enveloped, replace(people.at_bob(), identity=wrong))


@FAMILIES
async def test_an_independent_decoder_reads_the_recipient_and_encodes_the_same_octets(
    people: Identities, kem: str
) -> None:
    der = (await FurtherKEM(kem).seal(b"payload", people.to_bob(), MemoryKeys())).der
    info, _ = pyasn1_decode(der, asn1Spec=rfc5652.ContentInfo())
    data, rest = pyasn1_decode(info["content"], asn1Spec=rfc5083.AuthEnvelopedData())
    assert rest == b""
    assert pyasn1_encode(data) == bytes(info["content"])
    recipient, rest = pyasn1_decode(data["recipientInfos"][0]["ori"]["oriValue"], asn1Spec=rfc9629.KEMRecipientInfo())
    assert rest == b""
    assert str(recipient["kem"]["algorithm"]) == KEMS[kem].oid
    assert len(recipient["kemct"]) == KEMS[kem].ciphertext_octets
    assert len(recipient["rid"]["subjectKeyIdentifier"]) == 20


async def test_sizes_kems_and_names_of_keys_that_do_not_fit_are_refused(people: Identities) -> None:
    enveloped = cms.decode_enveloped((await FurtherKEM(HQC).seal(b"x", people.to_bob(), MemoryKeys())).der)
    [recipient] = enveloped.recipients
    assert isinstance(recipient, cms.KEMRecipient)
    for change in (
        {"kem": "ml-kem-1024"},
        {"kem_ciphertext": recipient.kem_ciphertext[:-1]},
        {"certificate": cms.CertificateID(ski=b"short")},
        {"certificate": cms.CertificateID(issuer=b"\x30\x00", serial=1)},
    ):
        other = replace(enveloped, recipients=(replace(recipient, **change),))
        with pytest.raises(BadStructure):
            cms.decode_enveloped(cms.encode_enveloped(other))
    der = bytearray(cms.encode_enveloped(enveloped))
    oid = KEMS[HQC].oid
    place = bytes(der).index(cms_oid(oid))
    der[place + len(cms_oid(oid)) - 1] ^= 1
    with pytest.raises(BadStructure, match="is unknown"):
        cms.decode_enveloped(bytes(der))


def cms_oid(dotted: str) -> bytes:
    encoded = pyasn1_encode(ObjectIdentifier(dotted))
    assert isinstance(encoded, bytes)
    return encoded


async def test_a_missing_library_holds_mail_that_was_sealed_for_us(
    people: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    enveloped = cms.decode_enveloped((await FurtherKEM(HQC).seal(b"x", people.to_bob(), MemoryKeys())).der)
    use(monkeypatch, f"the native library liboqs is missing: {liboqs.INSTALL}")
    keys = load_identity(people.bob.directory).further_kems
    assert keys == people.bob.identity.further_kems, "keys are read without the library"
    with pytest.raises(KEMUnavailable) as caught:
        await FurtherKEM(HQC).open(enveloped, people.at_bob())
    assert caught.value.reply.startswith("451 4.7.5")
    assert "pip install liboqs-python" in FurtherKEM(HQC).obstacle(people.to_bob())


@pytest.mark.usefixtures("library")
async def test_a_peer_without_such_a_key_is_an_obstacle_that_says_what_to_do(identities: Identities) -> None:
    for parties in (identities.to_bob(), replace(identities.to_bob(), certificates=None)):
        assert "identity new --kem hqc-256" in FurtherKEM(HQC).obstacle(parties)
        with pytest.raises(KEMUnavailable):
            await FurtherKEM(HQC).seal(b"x", parties, MemoryKeys())


# Keys and documents


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_keys_are_added_to_an_identity_and_protected_like_the_others(
    identities: Identities, tmp_path: Path, encrypted: bool
) -> None:
    directory, passphrase = tmp_path / "new", None
    if encrypted:
        passphrase = tmp_path / "passphrase"
        assert make_passphrase(passphrase, directory)
        directory.mkdir(mode=0o700, exist_ok=True)
        for path in identities.alice.directory.glob("rsa_*.key"):  # made once, as RSA keys take seconds
            shutil.copy2(path, directory)
    else:
        shutil.copytree(identities.alice.directory, directory)
    arguments: dict[str, Any] = {"name": "alice", "domains": ["alice.example"], "passphrase": passphrase}
    made = create_identity(directory, kems=(HQC, HQC), **arguments)
    assert [pair.name for pair in made.further_kems] == [HQC]
    [key], [public] = directory.glob("kem-hqc-256.*.key"), directory.glob("kem-hqc-256.*.pub")
    assert {stat.S_IMODE(path.stat().st_mode) for path in (key, public)} == {0o600}
    with pytest.raises(ConfigError, match="the identity is complete"):
        create_identity(directory, kems=(HQC,), **arguments)
    again = load_identity(directory, passphrase=passphrase)
    assert again.further_kems == made.further_kems
    assert again.offered_kems == {HQC: made.further_kems[0].public_key}
    assert made.further_kems[0].private_key.hex() not in repr(made)
    if encrypted:
        with pytest.raises(ConfigError, match="passphrase"):
            load_identity(directory)
        key.write_bytes(
            key.read_bytes().replace(b'"salt":"', b'"salt":"AAAA', 1).replace(b'"salt": "', b'"salt": "AAAA', 1)
        )
        with pytest.raises(ConfigError, match="another one, or the file is damaged"):
            load_identity(directory, passphrase=passphrase)
    key.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_identity(directory, passphrase=passphrase)


@pytest.mark.parametrize(
    ("suffix", "content"),
    [("pub", b""), ("pub", b"{}"), ("key", b"not json"), ("key", b'{"format":2,"kem":"hqc-256","private_key":""}')],
)
def test_a_damaged_key_file_is_named(people: Identities, suffix: str, content: bytes) -> None:
    [path] = people.bob.directory.glob(f"kem-hqc-256.*.{suffix}")
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"kem-hqc-256\.[0-9a-f]+\.{suffix}: not a key file"):
        load_identity(people.bob.directory)


def test_a_public_key_in_the_place_of_another_is_refused(people: Identities, tmp_path: Path) -> None:
    eve = with_kems(people.eve, tmp_path / "eve", "eve", "3", (HQC,))
    [theirs], [path] = eve.directory.glob("kem-*.pub"), people.bob.directory.glob("kem-hqc-256.*.pub")
    shutil.copy2(theirs, path)
    with pytest.raises(ConfigError, match="the public key of another file"):
        load_identity(people.bob.directory)
    [frodo] = people.bob.directory.glob("kem-frodo*.pub")
    shutil.copy2(frodo, path)
    with pytest.raises(ConfigError, match="not a public key of hqc-256"):
        load_identity(people.bob.directory)


def test_a_key_without_its_public_file_does_not_count(people: Identities) -> None:
    """An interrupted run leaves it so."""
    [path] = people.bob.directory.glob("kem-hqc-256.*.pub")
    path.unlink()
    assert HQC not in load_identity(people.bob.directory).offered_kems


async def test_renewing_makes_new_keys_and_the_old_ones_still_open(
    people: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    bob = people.bob
    older = (await FurtherKEM(HQC).seal(b"before", people.to_bob(), MemoryKeys())).der
    like = bob.identity.rsa_encryption.private_key
    monkeypatch.setattr("relay.identity.make.rsa.generate_private_key", lambda **_: like)
    early = datetime.now(UTC) - timedelta(minutes=10)
    renewed = renew_identity(bob.directory, name="bob", domains=["bob.example"], now=early)
    assert len(renewed.further_kems) == 2 * len(FURTHER_KEMS)
    assert all(renewed.offered_kems[name] != bob.identity.offered_kems[name] for name in FURTHER_KEMS)
    opening = replace(people.at_bob(), identity=renewed)
    assert (await FurtherKEM(HQC).open(cms.decode_enveloped(older), opening)).payload == b"before"
    peer = read_document(document(bob.directory, renewed, "bob", "1"))
    assert peer.further_kems == renewed.offered_kems
    newer = (await FurtherKEM(HQC).seal(b"after", replace(people.to_bob(), certificates=peer), MemoryKeys())).der
    assert (await FurtherKEM(HQC).open(cms.decode_enveloped(newer), opening)).payload == b"after"


@pytest.mark.usefixtures("no_library")
def test_without_the_library_no_keys_are_made_and_nothing_is_changed(identities: Identities, tmp_path: Path) -> None:
    directory = tmp_path / "carol"
    with pytest.raises(ConfigError, match="pip install liboqs-python"):
        create_identity(directory, name="carol", domains=["carol.example"], kems=(HQC,))
    assert not directory.exists()


def test_the_document_carries_the_public_keys_and_stays_within_its_bounds(people: Identities) -> None:
    peer = people.bob.certificates
    assert peer.further_kems == people.bob.identity.offered_kems
    assert set(peer.further_kems) == set(FURTHER_KEMS)
    assert len(people.bob.document) > 1_800_000
    assert b'"kems"' not in people.alice.document
    assert people.alice.certificates.further_kems == {}


@pytest.mark.parametrize(
    ("kems", "expected"),
    [({HQC: b"short"}, "5 octets are not a public key"), ({"rot13": b"x"}, "rot13")],
)
def test_a_document_with_doubtful_keys_is_refused_though_signed(
    identities: Identities, kems: dict[str, bytes], expected: str
) -> None:
    peer: PeerCertificates = replace(identities.bob.certificates, further_kems=kems)
    with pytest.raises((BadDocument, KeyError), match=expected):
        write_document(peer, identities.bob.identity.signing.private_key)


# Policies


def policies(tmp_path: Path, text: str) -> Any:
    (tmp_path / "policies").mkdir(exist_ok=True)
    (tmp_path / "policies" / "default.toml").write_text(text)
    return load_policies(tmp_path / "policies", {"bob": ["bob.example"]})


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('"ml-kem-1024"', ("ml-kem-1024",)),
        ('"ML-KEM-1024"', ("ml-kem-1024",)),
        ('["ml-kem-1024"]', ("ml-kem-1024",)),
        ('["hqc-256", "ml-kem-1024"]', ("ml-kem-1024", "hqc-256")),
        (ALL_KEMS, ("ml-kem-1024", *FURTHER_KEMS)),
    ],
)
def test_policies_list_the_kems_and_ml_kem_is_the_innermost(
    tmp_path: Path, written: str, expected: tuple[str, ...]
) -> None:
    decision = policies(tmp_path, f'levels = ["pqc", "aes"]\nkem = {written}\n').decide(
        "a@alice.example", "b@bob.example"
    )
    assert decision.kem == expected
    assert decision.layers("pqc") == ("pqc", *expected[1:])
    assert decision.layers("aes") == ("aes",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('kem = ["ml-kem-1024", "hqc-265"]', "'hqc-265' is not a KEM that is known here; did you mean 'hqc-256'?"),
        ('kem = ["ml-kem-1024", 5]', "known: ml-kem-1024, hqc-256"),
        ('kem = ["hqc-256"]', "'ml-kem-1024' is missing; further KEMs go around it"),
        ('kem = "hqc-256"', "'ml-kem-1024' is missing"),
        ("kem = []", "write a list of KEMs"),
        ("kem = 1", "write a list of KEMs"),
        ('kem = ["ml-kem-1024", "ml-kem-1024"]', "listed twice"),
        ('levels = ["rsa"]\nkem = ["ml-kem-1024", "hqc-256"]', "'hqc-256' goes around level pqc, which is not listed"),
    ],
)
def test_what_is_wrong_with_kem_is_said_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    text = text if text.startswith("levels") else f'levels = ["pqc"]\n{text}'
    with pytest.raises(ConfigError) as caught:
        policies(tmp_path, text)
    assert "default.toml:2: kem" in str(caught.value)
    assert expected in str(caught.value)


def test_a_message_can_add_a_kem_and_take_none_away(tmp_path: Path) -> None:
    rule = '[[when]]\nsubject_tag = "[two]"\nkem = ["ml-kem-1024", {}]\n'
    file = 'levels = ["pqc"]\nkem = ["ml-kem-1024", "hqc-256"]\n'
    with pytest.raises(ConfigError, match="leaves out hqc-256; list it, too"):
        policies(tmp_path, file + rule.format('"frodokem-1344-shake"'))
    both = file + '[[when]]\nsender = "ceo@alice.example"\nkem = "ml-kem-1024"\n'
    both += rule.format('"frodokem-1344-shake", "hqc-256"')
    found = policies(tmp_path, both)
    content = MessageFacts(b"Subject: [two]\r\n\r\n")
    assert found.decide("ceo@alice.example", "b@bob.example").kem == ("ml-kem-1024",), "by sender less is possible"
    assert set(found.decide("ann@alice.example", "b@bob.example", content).kem) == {
        "ml-kem-1024", "hqc-256", "frodokem-1344-shake",
    }  # fmt: skip


@pytest.mark.usefixtures("no_library")
def test_without_the_library_check_refuses_the_names_with_file_line_and_the_way_to_install(tmp_path: Path) -> None:
    found = policies(
        tmp_path,
        'levels = ["pqc"]\n\nkem = ["ml-kem-1024", "hqc-256"]\n'
        '[[when]]\nsender = "*@x.example"\nkem = ["ml-kem-1024", "classic-mceliece-6688128"]\n',
    )
    first, second = map(str, kems_not_here(found))
    assert "default.toml:3:1: hqc-256: the native library liboqs is missing" in first
    assert "pip install liboqs-python" in first
    assert "default.toml:6:1: classic-mceliece-6688128:" in second


# Whole mails


@pytest.fixture
def sites(people: Identities, kmes: DevelopmentKMEs, tmp_path: Path) -> tuple[Site, Site]:
    first, second = kmes.urls
    to = TCPAddress("127.0.0.1", 1)
    state = kmes.state_dir
    alice = make_site(tmp_path / "alice", "alice", state=state, kme_url=first, outgoing=to, identities=people)
    bob = make_site(tmp_path / "bob", "bob", state=state, kme_url=second, incoming=to, identities=people)
    alice.write_policies(
        {
            "bob.example/all.toml": f'levels = ["pqc"]\nquantum = "required"\nkem = {ALL_KEMS}\n',
            "bob.example/hqc.toml": 'levels = ["pqc"]\nquantum = "off"\nkem = ["ml-kem-1024", "hqc-256"]\n',
            "bob.example/one.toml": 'levels = ["pqc"]\nquantum = "off"\n',
            "bob.example/raised.toml": 'levels = ["pqc", "rsa"]\nquantum = "off"\n\n[[when]]\n'
            'header = "MIME-Version"\nkem = ["ml-kem-1024", "hqc-256"]\n',
            "bob.example/else.toml": 'levels = ["pqc", "rsa"]\nquantum = "off"\nkem = ["ml-kem-1024", "hqc-256"]\n',
        }
    )
    return alice, bob


async def seal(site: Site, *names: str) -> list[SealedCopy]:
    recipients = tuple(Recipient(f"{name}@bob.example") for name in names)
    async with assembly.parts(site.config, prefetch=False) as parts:
        mail = Mail(Envelope("ann@alice.example", recipients), mails.random_attachment(20_000))
        sealed = await parts.sealer.seal(mail)
        for failure in sealed.failures.values():
            raise failure
        return sealed.copies


async def test_mail_goes_through_every_layer_and_back(sites: tuple[Site, Site]) -> None:
    alice, bob = sites
    protections = {"all": f"pqc+{'+'.join(FURTHER_KEMS)}+aes", "hqc": "pqc+hqc-256", "one": "pqc"}
    for name, protection in protections.items():
        [form] = await seal(alice, name)
        assert form.protection == protection
        async with assembly.parts(bob.config, prefetch=False) as parts:
            opened = await parts.originals.opener.open(form.message, "ann@alice.example")
        assert opened is not None
        assert (opened.original, opened.protection, opened.peer) == (
            mails.random_attachment(20_000),
            protection,
            "alice",
        )


async def test_recipients_with_other_kems_get_another_message(sites: tuple[Site, Site]) -> None:
    alice, _ = sites
    forms = await seal(alice, "hqc", "one", "else")
    assert sorted((form.protection, len(form.recipients)) for form in forms) == [("pqc", 1), ("pqc+hqc-256", 2)]


async def test_a_layer_that_cannot_be_had_is_never_left_out(
    sites: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, _ = sites
    use(monkeypatch, f"the native library liboqs is missing: {liboqs.INSTALL}")
    with pytest.raises(PolicyHolds, match="pqc: hqc-256: the native library liboqs is missing"):
        await seal(alice, "hqc")
    [form] = await seal(alice, "else")
    assert form.protection == "rsa", "the next level that policy lists"
    [form] = await seal(alice, "one")
    assert form.protection == "pqc"
    # Without the rule it would have left by pqc: what only raises must not have it leave by rsa.
    with pytest.raises(PolicyHolds, match="pqc: hqc-256: the native library liboqs is missing"):
        await seal(alice, "raised")


async def layered(people: Identities, *layers: str, inner: bytes | None = None) -> bytes:
    """A sealed message whose layers were put around each other without any check."""
    content = payload(mails.plain(), "+".join(layers)) if inner is None else inner
    for name in layers:
        level = PQC() if name == "pqc" else FurtherKEM(name)
        content = bytes(mime.wrap_enveloped((await level.seal(content, people.to_bob(), MemoryKeys())).der))
    _, der, _ = mime.unwrap(content)
    return mime.sealed_message(mails.plain(), der)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ((HQC,), "message data inside a layer of hqc-256"),
        ((HQC, "pqc"), "enveloped data inside a layer of pqc"),
        (("pqc", HQC, HQC), "hqc-256 inside a layer of"),
        (("pqc", HQC, "frodokem-1344-shake", HQC), "hqc-256 inside a layer of"),
    ],
)
async def test_layers_in_another_order_than_we_write_are_refused(
    sites: tuple[Site, Site], people: Identities, layers: tuple[str, ...], expected: str
) -> None:
    """Above all, knowledge of Bob's public key alone must not pass for Alice."""
    _, bob = sites
    message = await layered(people, *layers)
    async with assembly.parts(bob.config, prefetch=False) as parts:
        with pytest.raises((BadStructure, BadSignature), match=expected):
            await parts.originals.opener.open(message, "ann@alice.example")


async def test_a_layer_for_somebody_else_is_left_as_it_is(
    sites: tuple[Site, Site], people: Identities, tmp_path: Path
) -> None:
    _, bob = sites
    eve = with_kems(people.eve, tmp_path / "eve", "eve", "3", (HQC,))
    message = await layered(replace(people, bob=eve), "pqc", HQC)
    async with assembly.parts(bob.config, prefetch=False) as parts:
        assert await parts.originals.opener.open(message, "ann@alice.example") is None


# Commands


def run(where: Path, *arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Runs a command, with the stand-in and some library in the places of liboqs where that is not installed."""
    environment = dict(os.environ)
    if MISSING:
        (where / "python").mkdir(exist_ok=True)
        (where / "python/oqs.py").write_text(
            "import sys\nfrom tests.testlib.stand_in_oqs import stand_in\nsys.modules[__name__] = stand_in()\n"
        )
        (where / "lib").mkdir(exist_ok=True)
        some_library = re.search(r"\S+/libc\.so\S*", Path("/proc/self/maps").read_text())
        assert some_library
        (where / "lib/liboqs.so").unlink(missing_ok=True)
        (where / "lib/liboqs.so").symlink_to(some_library[0])
        environment |= {"OQS_INSTALL_PATH": str(where), "PYTHONPATH": f"{where}/python:{ROOT}"}
    command = [sys.executable, "-m", "relay", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, check=False, cwd=ROOT, env=environment)


async def test_seal_and_open_give_the_file_back_through_all_kems(
    library: None, identities: Identities, kmes: DevelopmentKMEs, tmp_path: Path
) -> None:
    people = replace(identities, bob=with_kems(identities.bob, tmp_path / "bob-identity", "bob", "1"))
    first, second = kmes.urls
    address = TCPAddress("127.0.0.1", 1)
    policy = {"default.toml": f'levels = ["pqc"]\nquantum = "required"\nkem = {ALL_KEMS}\n'}
    alice = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=first, outgoing=address, identities=people,
        policies=policy,
    )  # fmt: skip
    bob = make_site(tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=second, incoming=address, identities=people)
    original = mails.random_attachment()
    (tmp_path / "original.eml").write_bytes(original)
    addresses = ("--from", "ann@alice.example", "--to", "ben@bob.example")
    sealed = await asyncio.to_thread(
        run, tmp_path, "seal", "--config", alice.config_file, *addresses, tmp_path / "original.eml"
    )
    assert (sealed.returncode, sealed.stderr) == (0, b"")
    opened = await asyncio.to_thread(run, tmp_path, "open", "--config", bob.config_file, "-", stdin=sealed.stdout)
    assert (opened.returncode, opened.stderr, opened.stdout) == (0, b"", original)


async def test_policy_check_and_explain_show_the_kems(sites: tuple[Site, Site]) -> None:
    alice, _ = sites
    found = load_policies(alice.config.policies.directory, alice.config.peer_domains)
    explanation = found.explain("ann@alice.example", "hqc@bob.example")
    console = plain_console()
    with console.capture() as shown:
        print_explanation(console, explanation, None)
    assert "ml-kem-1024, then around it hqc-256" in shown.get()
    assert explanation.as_dict()["decision"]["kem"] == ["ml-kem-1024", "hqc-256"]


def home(directory: Path, person: Person) -> Path:
    """A relay.toml that names a copy of an identity."""
    directory.mkdir()
    shutil.copytree(person.directory, directory / "identity")
    (directory / "relay.toml").write_text(
        '[site]\nname = "alice"\ndomains = ["alice.example"]\nsae_id = "2"\n'
        '[outgoing]\nlisten = "127.0.0.1:0"\nnext_hop = "127.0.0.1:25"\n[policies]\ndirectory = "policies"\n'
        '[store]\ndatabase = "relay.db"\nsecret = "secret"\n[identity]\ndirectory = "identity"\npeers_directory = "peers"\n'
    )
    return directory / "relay.toml"


@pytest.mark.usefixtures("library")
def test_identity_new_adds_keys_and_shows_them(identities: Identities, tmp_path: Path) -> None:
    config = home(tmp_path / "home", identities.alice)
    made = CliRunner().invoke(identity_command, ["new", "--config", str(config), "--kem", HQC])
    assert made.exit_code == 0, made.output
    assert "Further KEMs: hqc-256" in made.stdout
    shown = CliRunner().invoke(identity_command, ["show", "--config", str(config), "--json"])
    assert '"hqc-256"' in shown.stdout
    exported = CliRunner().invoke(identity_command, ["export", "--config", str(config)])
    assert set(read_document(exported.stdout.encode()).further_kems) == {HQC}
    usage = CliRunner().invoke(identity_command, ["new", "--config", str(config), "--kem", HQC, "--csr"])
    assert usage.exit_code == 2


@pytest.mark.usefixtures("no_library")
def test_check_and_policy_check_say_what_to_install(identities: Identities, tmp_path: Path) -> None:
    config = home(tmp_path / "home", identities.alice)
    (tmp_path / "home" / "policies").mkdir()
    policy = tmp_path / "home" / "policies" / "default.toml"
    policy.write_text('levels = ["pqc"]\nkem = ["ml-kem-1024", "hqc-256"]\n')
    result = CliRunner().invoke(check_command, ["--config", str(config), "--json"])
    assert result.exit_code == 1
    [found] = [each for each in json.loads(result.stdout) if each["what"] == "policies"]
    assert found["problems"][0].startswith(f"{policy}:2:1: hqc-256: the native library liboqs is missing")
    assert "pip install liboqs-python" in found["problems"][0]
    result = CliRunner().invoke(policy_command, ["check", "--config", str(config), "--offline", "--strict"])
    assert result.exit_code == 1
    assert f"doubtful: {policy}:2:1: hqc-256: the native library liboqs is missing" in result.output


def test_check_says_that_we_cannot_open_what_we_asked_for(
    people: Identities, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(home(tmp_path / "home", replace(people.alice, directory=people.bob.directory)))
    now = datetime.now(UTC)
    before = identity_findings(config, now)
    use(monkeypatch, f"the native library liboqs is missing: {liboqs.INSTALL}")
    (_, wrong), *_ = identity_findings(config, now)
    assert not any("liboqs" in problem for _, problems in before for problem in problems)
    assert sum("pip install liboqs-python" in problem for problem in wrong) == len(FURTHER_KEMS)
