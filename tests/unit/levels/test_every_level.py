"""What holds of every level in the register: it opens what it seals, nothing else does, and the tripwire knows its form.
Standard: relay/FORMAT.md, sections 1 and 9; a level that is added is tested here without another line.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap, aes_key_wrap

from relay.errors import BadStructure, CannotOpen, KMEBadReply, RelayError, TrippedWire
from relay.formats import cms, mime
from relay.formats.cms import der
from relay.formats.cms.enveloped import AnyAlgorithm, decode_content, encode_content
from relay.journey.tripwire import check_sealed
from relay.keys import Key
from relay.levels import LEVELS, PADS, SINGLE_KEYS, Level
from relay.schemes import Opening, Scheme
from relay.schemes.all import all_schemes
from tests.testlib import mails
from tests.testlib.identities import Identities
from tests.testlib.keys import MemoryKeys
from tests.testlib.payloads import payload

each_level = pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
each_quantum_level = pytest.mark.parametrize(
    "level", [level for level in LEVELS if level.quantum], ids=lambda level: level.name
)
each_level_of_single_keys = pytest.mark.parametrize(
    "level", [level for level in LEVELS if level.use == SINGLE_KEYS], ids=lambda level: level.name
)


async def sealed(level: Level, identities: Identities, content: bytes) -> tuple[Scheme, bytes, Opening]:
    """The level's scheme, what it makes of this, and what opens it."""
    scheme: Scheme = import_module(f"relay.schemes.{level.name}").scheme()
    keys = MemoryKeys()
    made = await scheme.seal(content, identities.to_bob(), keys)
    assert bool(made.keys) == bool(made.quantum_bits) == level.quantum
    assert set(keys.taken_for) <= {level.name}, "a key is taken for another level"
    wants = (level.use == SINGLE_KEYS, level.use == PADS)
    assert (bool(keys.taken_for), bool(keys.pads)) == wants, f"level {level.name} does not take what its `use` says"
    return scheme, made.der, replace(identities.at_bob(), keys=keys.issued)


@each_level
@pytest.mark.parametrize("size", [1, 5000, 400_000])
async def test_what_is_sealed_opens_to_the_same_octets(level: Level, size: int, identities: Identities) -> None:
    content = bytes(index % 251 for index in range(size))
    scheme, der, opening = await sealed(level, identities, content)
    unsealed = await scheme.open(cms.decode_enveloped(der), opening)
    assert unsealed.payload == content
    assert (unsealed.signed_by is not None) != level.quantum


@each_level
async def test_one_scheme_alone_recognises_it(level: Level, identities: Identities) -> None:
    scheme, der, _ = await sealed(level, identities, b"x")
    enveloped = cms.decode_enveloped(der)
    assert [name for name, each in all_schemes().items() if each.recognises(enveloped)] == [level.name]
    assert bool(scheme.references(enveloped)) == level.quantum


@each_level
async def test_each_changed_octet_of_ciphertext_and_tag_is_noticed(level: Level, identities: Identities) -> None:
    scheme, der, opening = await sealed(level, identities, b"pay 100 to Bob " * 10)
    for position in range(len(der) - 100, len(der)):
        changed = bytearray(der)
        changed[position] ^= 0x04
        with pytest.raises(CannotOpen):
            await scheme.open(cms.decode_enveloped(bytes(changed)), opening)


@each_level
async def test_without_keys_of_ours_nothing_opens(level: Level, identities: Identities) -> None:
    scheme, der, _ = await sealed(level, identities, b"payload")
    with pytest.raises(RelayError):
        await scheme.open(cms.decode_enveloped(der), Opening({}, identities.eve.identity))


@each_level
async def test_the_keys_are_bound_to_a_ciphertext_once_its_tag_was_right(level: Level, identities: Identities) -> None:
    """Opening.verified is called once, and at no message that was changed."""
    scheme, der, opening = await sealed(level, identities, b"payload")
    bound: list[None] = []
    opening = replace(opening, verified=lambda: bound.append(None))
    with pytest.raises(CannotOpen):
        await scheme.open(cms.decode_enveloped(der[:-1] + bytes([der[-1] ^ 1])), opening)
    assert not bound
    await scheme.open(cms.decode_enveloped(der), opening)
    assert len(bound) == level.quantum, f"relay/schemes/{level.name}.py does not call opening.verified"


@each_level
@pytest.mark.parametrize(
    "parameters", ["0500", "0400", "0408" + 8 * "00", "0418" + 24 * "00", "3000", "020101"], ids=lambda text: text[:4]
)
async def test_content_encryption_with_parameters_of_another_form_is_refused(
    level: Level, parameters: str, identities: Identities
) -> None:
    _, made, _ = await sealed(level, identities, b"payload")
    kind = cms.decode_enveloped(made).content
    algorithm = der.parse(AnyAlgorithm, encode_content(kind), "")
    assert decode_content(algorithm) == kind
    other = der.algorithm(algorithm.algorithm, bytes.fromhex(parameters))
    with pytest.raises(BadStructure):
        decode_content(der.parse(AnyAlgorithm, other, ""))


@each_level
async def test_content_under_the_encryption_of_another_level_is_no_message_of_this_one(
    level: Level, identities: Identities
) -> None:
    scheme, der, opening = await sealed(level, identities, b"payload")
    enveloped = cms.decode_enveloped(der)
    for other in LEVELS:
        _, made, _ = await sealed(other, identities, b"payload")
        if type(content := cms.decode_enveloped(made).content) is not type(enveloped.content):
            with pytest.raises(CannotOpen):
                await scheme.open(replace(enveloped, content=content), opening)


@each_quantum_level
async def test_a_message_under_quantum_keys_has_one_recipient(level: Level, identities: Identities) -> None:
    scheme, der, opening = await sealed(level, identities, b"payload")
    enveloped = cms.decode_enveloped(der)
    twice = replace(enveloped, recipients=enveloped.recipients * 2)
    with pytest.raises(BadStructure):
        scheme.references(twice)
    with pytest.raises(BadStructure):
        await scheme.open(twice, opening)


@each_level_of_single_keys
@pytest.mark.parametrize("octets", [16, 24, 31, 33])
async def test_a_quantum_key_of_another_length_seals_and_opens_nothing(
    level: Level, octets: int, identities: Identities
) -> None:
    scheme, der, opening = await sealed(level, identities, b"payload")
    with pytest.raises(KMEBadReply):
        await scheme.seal(b"payload", identities.to_bob(), MemoryKeys(octets=octets))
    enveloped = cms.decode_enveloped(der)
    [recipient], [key] = enveloped.recipients, opening.keys.values()
    assert isinstance(recipient, cms.KEKRecipient)
    other = Key(key.key_ID, bytes(octets))
    if octets in (16, 24):  # with which the key wrap works as well
        content_key = aes_key_unwrap(key.key, recipient.wrapped_cek)
        recipient = replace(recipient, wrapped_cek=aes_key_wrap(other.key, content_key))
    with pytest.raises(BadStructure):
        await scheme.open(replace(enveloped, recipients=(recipient,)), replace(opening, keys={key.key_ID: other}))


@each_level
async def test_the_tripwire_lets_it_pass_as_this_level_and_as_no_other_form(
    level: Level, identities: Identities
) -> None:
    message = mails.plain()
    _, der, _ = await sealed(level, identities, payload(message, level.name))
    outer = bytes(mime.sealed_message(message, der))
    check_sealed(outer, level.name)
    for other in {each.name for each in LEVELS} - {level.name}:
        with pytest.raises(TrippedWire):
            check_sealed(outer, other)
