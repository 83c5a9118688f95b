"""A peer with valid keys and certificates tries what it may not: another's words, another's names, weaker levels.
Standard: relay/FORMAT.md 9 and 11: the sealed envelope is under the signature, and names both sites and all layers.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from relay.config import TCPAddress
from relay.formats import cms, mime
from relay.formats.cms.sealed_envelope import MAX_RECIPIENTS
from relay.kme import DevelopmentKMEs
from relay.schemes import Parties
from relay.schemes.content_key import KEY_OCTETS, decrypt, encrypt, kem_key, unwrap
from relay.schemes.pqc import PQC
from tests.integration.attacks.conftest import Scene, quarantined
from tests.testlib import mails
from tests.testlib.identities import Identities, Person
from tests.testlib.keys import MemoryKeys
from tests.testlib.loop_clock import loop_clock, slow
from tests.testlib.payloads import payload, sealed_envelope
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site, serving
from tests.testlib.submit import submit

pytestmark = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
"""What the store holds plays no part in any of these."""

MINE = "pqc@bob.example"


def _to(person: Person, sealer: Person, slave_sae: str) -> Parties:
    return Parties("2", slave_sae, "somebody", sealer.identity, person.certificates)


def _signed_inside(der: bytes, reader: Person) -> bytes:
    """What the reader of a message at level pqc sees: the SignedData with its MIME header."""
    enveloped = cms.decode_enveloped(der)
    [recipient] = enveloped.recipients
    assert isinstance(recipient, cms.KEMRecipient)
    secret = reader.identity.kem.private_key.decapsulate(recipient.kem_ciphertext)
    return decrypt(enveloped, unwrap(kem_key(secret), recipient.wrapped_cek, "Eve's key"))


def _encrypted_to(entity: bytes, person: Person) -> bytes:
    """Any entity, encrypted to somebody's ML-KEM key: that takes no secret."""
    certificate = person.certificates.kem
    assert certificate is not None
    key = os.urandom(KEY_OCTETS)
    return bytes(encrypt(entity, key, PQC().recipient("somebody", certificate, key)))


@pytest.mark.promise("A peer speaks for its own domains only")
async def test_what_alice_signed_for_one_site_is_not_taken_at_another(scene: Scene, identities: Identities) -> None:
    """Eve's site gets a mail from Alice's, and encrypts the signed payload once more, to Bob's site."""
    envelope = sealed_envelope("pqc", slave_sae="7", recipients=(MINE,))
    sealed = await PQC().seal(
        mime.wrap_payload(mails.plain(), envelope.encode()), _to(identities.eve, identities.alice, "7"), MemoryKeys()
    )
    again = _encrypted_to(_signed_inside(sealed.der, identities.eve), identities.bob)
    assert (await scene.sent(mime.sealed_message(mails.plain(), again), to=MINE)).code == 250
    assert not scene.delivered
    assert await quarantined(scene.bob) == ["redirected"]


@pytest.mark.promise("A peer uses only the levels in `accept`")
async def test_a_layer_around_quantum_keys_cannot_be_taken_off(scene: Scene, identities: Identities) -> None:
    """What Alice sealed as pqc+aes does not arrive as pqc, even by who knows the quantum key."""
    sealed = await PQC().seal(payload(mails.plain(), "pqc+aes"), identities.to_bob(), MemoryKeys())
    assert (await scene.sent(mime.sealed_message(mails.plain(), sealed.der), to="ben@bob.example")).code == 250
    assert not scene.delivered
    assert await quarantined(scene.bob) == ["redirected"]


@pytest.mark.promise("A peer speaks for its own domains only")
async def test_a_peer_seals_for_no_sender_of_another_domain(scene: Scene, identities: Identities) -> None:
    envelope = sealed_envelope("pqc", sender="minister@ministry.example", recipients=(MINE,))
    sealed = await PQC().seal(mime.wrap_payload(mails.plain(), envelope.encode()), identities.to_bob(), MemoryKeys())
    assert (await scene.sent(mime.sealed_message(mails.plain(), sealed.der), to=MINE)).code == 250
    assert not scene.delivered
    assert await quarantined(scene.bob) == ["redirected"]


NO_ADDRESSES = (
    "minister@ministry.example> ENVID=x@alice.example",
    "minister@ministry.example>\r\nRCPT TO:<eve@bob.example> x@alice.example",
    "a b@alice.example",
    "\0@alice.example",
    "alice.example",
)


@pytest.mark.promise("A sealed sender that is no address gets into no SMTP command")
async def test_a_sealed_sender_that_is_no_address_gets_into_no_smtp_command(
    scene: Scene, identities: Identities
) -> None:
    """Its domain would be that of what stands behind the last @, and the next hop would read another one."""
    for number, sender in enumerate(NO_ADDRESSES, start=1):
        payload_ = mime.wrap_payload(mails.plain(), sealed_envelope("pqc", sender=sender, recipients=(MINE,)).encode())
        sealed = await PQC().seal(payload_, identities.to_bob(), MemoryKeys())
        assert (await scene.sent(mime.sealed_message(mails.plain(), sealed.der), to=MINE)).code == 250
        assert not scene.delivered
        assert await quarantined(scene.bob) == ["unknown-format"] * number


@asynccontextmanager
async def _bob(
    directory: Path, kmes: DevelopmentKMEs, identities: Identities, sink: Sink, peer_settings: str
) -> AsyncIterator[tuple[Site, TCPAddress]]:
    site = make_site(
        directory / "strict", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=sink.address,
        identities=identities,
    )  # fmt: skip
    site.config_file.write_text(site.config_file.read_text().rstrip() + f"\n{peer_settings}\n")
    async with serving(site) as addresses:
        yield site, addresses["incoming"]


@pytest.mark.promise("A peer uses only the levels in `accept`")
@pytest.mark.parametrize(("level", "accept"), [("rsa", '["pqc"]'), ("otp", '["pqc"]'), ("pqc", '["otp", "aes"]')])
async def test_a_peer_may_use_only_the_levels_that_its_configuration_accepts(
    scene: Scene, tmp_path: Path, kmes: DevelopmentKMEs, identities: Identities, level: str, accept: str
) -> None:
    message = await scene.captured(level)
    async with _bob(tmp_path, kmes, identities, scene.sink, f"accept = {accept}") as (site, incoming):
        assert (await submit(incoming, message, recipients=[f"{level}@bob.example"])).code == 250
        assert not scene.delivered
        assert await quarantined(site) == ["not-accepted"]


@pytest.mark.promise("A peer uses only the levels in `accept`")
async def test_a_further_layer_that_anybody_can_put_around_is_refused(scene: Scene, identities: Identities) -> None:
    """Encrypting to Bob's public key takes no secret, and would hide what was sealed as another level."""
    message = await scene.captured("pqc")
    around = _encrypted_to(bytes(mime.wrap_enveloped(mime.sealed_content(message))), identities.bob)
    await scene.sent(mime.sealed_message(mails.plain(), around), to=MINE)
    assert not scene.delivered
    assert (await scene.sent(message, to=MINE)).code == 250
    assert len(scene.delivered) == 1


async def test_a_mail_that_names_ten_thousand_holds_nobody_up_however_many_aliases_there_are(
    scene: Scene, tmp_path: Path, kmes: DevelopmentKMEs, identities: Identities
) -> None:
    aliases = "".join(f'"list{number}@bob.example" = ["user{number}@bob.example"]\n' for number in range(1000))
    names = (MINE, *(f"user{number}@bob.example" for number in range(MAX_RECIPIENTS - 1)))
    async with _bob(tmp_path, kmes, identities, scene.sink, f"\n[aliases]\n{aliases}") as (_, incoming):
        with loop_clock() as clock:

            async def one() -> None:
                envelope = sealed_envelope("pqc", recipients=names)
                payload_ = await asyncio.to_thread(mime.wrap_payload, mails.plain(), envelope.encode())
                sealed = await PQC().seal(payload_, identities.to_bob(), MemoryKeys())
                message = mime.sealed_message(mails.plain(), sealed.der)
                clock.reset()
                assert (await submit(incoming, message, recipients=[MINE])).code == 250

            held = await slow(clock, "ten thousand recipients", one, 3.0)
        assert held is None, str(held)
        assert scene.delivered
