"""A wire observer reads the pads off a captured message and seals a mail of their own under them.
Standard: relay/FORMAT.md 9 and 11: octets that have hidden something never authenticate, a key opens one ciphertext.
"""

from __future__ import annotations

import pytest

from relay.formats import cms, mime
from relay.process import assembly
from tests.integration.attacks import forger
from tests.integration.attacks.conftest import Scene, quarantined
from tests.testlib import mails

pytestmark = pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
"""Bob has two relays on one store: a key that opened something at one of them is used at both."""

BEN = "otp@bob.example"


@pytest.mark.promise("Octets read off the wire authenticate nothing")
@pytest.mark.in_process
@pytest.mark.parametrize("first", ["forged", "genuine"])
async def test_a_message_under_octets_that_were_read_off_is_never_delivered(scene: Scene, first: str) -> None:
    """Tag keys out of all that is known: hidden octets of two keys, one key's whole known half and zeros, zeros."""
    message = await scene.captured("otp")
    known = forger.read_off(message, scene.payloads[-1])
    assert len(known.hidden) > 10
    key_IDs = list(known.content.key_IDs)
    halves = [known.hidden[key_IDs[0]], known.hidden[key_IDs[1]]]
    guesses = [halves[0] + halves[1], halves[1] + halves[0], halves[0] + bytes(16), bytes(32)]
    payload = forger.forged_payload("otp", recipients=(BEN,))
    forgeries = [forger.pad_forgery(known, key_IDs, guess, payload) for guess in guesses]
    if first == "genuine":
        assert (await scene.sent(message, to=BEN)).code == 250
    for forged in forgeries:
        await scene.sent(forged, to=BEN)
    if first == "forged":
        assert (await scene.sent(message, to=BEN)).code == 250
    [only] = scene.delivered
    assert only.message.endswith(mails.plain())
    reason = "tampered" if first == "forged" else "key-used"
    assert await quarantined(scene.bob) == [reason] * len(forgeries)


@pytest.mark.promise("Octets read off the wire authenticate nothing")
@pytest.mark.in_process
@pytest.mark.parametrize("first", ["forged", "genuine"])
async def test_a_pad_key_that_was_read_off_is_no_key_encryption_key(scene: Scene, first: str) -> None:
    """Half of it is known; the forger fills in zeros. The right key itself must fail too, once it was a pad's."""
    message = await scene.captured("otp")
    known = forger.read_off(message, scene.payloads[-1])
    key_ID = known.content.key_IDs[0]
    payload = forger.forged_payload("aes", recipients=(BEN,))
    forged = forger.key_wrap_forgery(known, key_ID, bytes(16) + known.hidden[key_ID], payload)
    order = [forged, message] if first == "forged" else [message, forged]
    for each in order:
        await scene.sent(each, to=BEN)
    assert [got.message.endswith(mails.plain()) for got in scene.delivered] == [True]
    assert await quarantined(scene.bob) == ["tampered" if first == "forged" else "key-used"]


@pytest.mark.promise("A received key opens one ciphertext")
@pytest.mark.in_process
async def test_a_key_that_opened_a_pad_opens_nothing_at_level_aes_even_for_who_knows_it_whole(scene: Scene) -> None:
    """As if the peer itself, or a thief of the key, used it twice."""
    message = await scene.captured("otp")
    known = forger.read_off(message, scene.payloads[-1])
    assert (await scene.sent(message, to=BEN)).code == 250
    key_ID = known.content.key_IDs[0]
    async with assembly.parts(scene.bob.config, prefetch=False) as parts:
        held, _ = await parts.store.received.look("alice-bob", "2", [key_ID])
    payload = forger.forged_payload("aes", recipients=(BEN,))
    await scene.sent(forger.key_wrap_forgery(known, key_ID, held[key_ID], payload), to=BEN, relay=1)
    assert len(scene.delivered) == 1
    assert await quarantined(scene.bob) == ["key-used"]


@pytest.mark.promise("Octets read off the wire authenticate nothing")
async def test_keys_of_a_pad_in_another_order_are_refused_before_any_is_asked_for(scene: Scene) -> None:
    """With r and s of a seen tag exchanged, its bound would be far weaker."""
    message = await scene.captured("otp")
    enveloped = cms.decode_enveloped(mime.sealed_content(message))
    assert isinstance(enveloped.content, cms.PadContent)
    first, second, *rest = enveloped.content.key_IDs
    of = enveloped.content
    swapped = cms.PadContent(of.master_sae, of.slave_sae, of.kme_group, of.compression, (second, first, *rest))
    forged = cms.AuthEnveloped(enveloped.recipients, swapped, enveloped.ciphertext, enveloped.tag)
    await scene.sent(forger.outer(cms.encode_enveloped(forged)), to=BEN)
    assert await quarantined(scene.bob) == ["unknown-format"]
    async with assembly.parts(scene.bob.config, prefetch=False) as parts:
        assert await parts.store.received.look("alice-bob", "2", of.key_IDs) == ({}, frozenset())
    assert (await scene.sent(message, to=BEN)).code == 250
    assert len(scene.delivered) == 1


@pytest.mark.promise("Forgeries do not block the genuine mail")
async def test_forgeries_under_a_wrong_tag_do_not_block_the_genuine_mail(scene: Scene) -> None:
    """A tag that is wrong binds nothing."""
    message = await scene.captured("aes")
    enveloped = cms.decode_enveloped(mime.sealed_content(message))
    changed = cms.AuthEnveloped(enveloped.recipients, enveloped.content, enveloped.ciphertext, bytes(16))
    for _ in range(3):
        await scene.sent(forger.outer(cms.encode_enveloped(changed)), to="aes@bob.example")
    assert not scene.delivered
    assert (await scene.sent(message, to="aes@bob.example", relay=1)).code == 250
    assert len(scene.delivered) == 1
