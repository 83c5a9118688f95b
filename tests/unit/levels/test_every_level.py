"""What holds of every level in the register: it opens what it seals, nothing else does, and the tripwire knows its form.
Standard: relay/FORMAT.md, sections 1 and 9; a level that is added is tested here without another line.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from relay.errors import CannotOpen, RelayError, TrippedWire
from relay.formats import cms, mime
from relay.journey.tripwire import check_sealed
from relay.levels import LEVELS, Level
from relay.schemes import Opening, Scheme
from relay.schemes.all import all_schemes
from tests.testlib import mails
from tests.testlib.identities import Identities
from tests.testlib.keys import MemoryKeys
from tests.testlib.payloads import payload

SCHEMES = all_schemes()
each_level = pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)


async def sealed(level: Level, identities: Identities, content: bytes) -> tuple[Scheme, bytes, Opening]:
    """The level's scheme, what it makes of this, and what opens it."""
    scheme, keys = SCHEMES[level.name], MemoryKeys()
    made = await scheme.seal(content, identities.to_bob(), keys)
    assert bool(made.keys) == bool(made.quantum_bits) == level.quantum
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
    _, der, _ = await sealed(level, identities, b"x")
    enveloped = cms.decode_enveloped(der)
    assert [name for name, scheme in SCHEMES.items() if scheme.recognises(enveloped)] == [level.name]
    assert bool(SCHEMES[level.name].references(enveloped)) == level.quantum


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
