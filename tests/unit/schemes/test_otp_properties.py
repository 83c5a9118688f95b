"""Level otp for keys and payloads of any sizes: what authenticates never hides, and no receiver refuses what a sender made.
Standard: relay/FORMAT.md, "Level otp"; the ciphertext is taken apart here without the level's own code.
"""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import example, given, strategies as st

from relay.errors import BadStructure, BadTag, KMEMisconfigured
from relay.formats import cms
from relay.keys import Key, KeyReference
from relay.keys.pads import Pad, pad_of, plan_pad
from relay.keys.replies import status_from_reply
from relay.keys.types import SealingKey
from relay.schemes import Opening, Parties
from relay.schemes.otp import OneTimePad
from relay.schemes.padding import pad, padded_size

PARTIES = Parties(master_sae="2", slave_sae="1", peer="bob")
FIRST = 16

payloads = st.binary(max_size=600)
sizes = st.lists(st.integers(32, 200), min_size=2, max_size=40)
names = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=12)


class GivenKeys:
    """Makes a pad of just these keys, as many as are needed."""

    def __init__(self, keys: list[Key]) -> None:
        self._keys = keys

    async def take(self, peer: str, *, level: str = "aes", size: int = 0) -> SealingKey:
        raise AssertionError("level otp needs a pad")

    async def take_pad(self, peer: str, hidden: int) -> Pad:
        references = [KeyReference(key.key_ID, "2", "1", "alice-bob") for key in self._keys]
        return pad_of(self._keys, references, hidden)[0]


def _sealed(payload: bytes, keys: list[Key]) -> bytes:
    return asyncio.run(OneTimePad().seal(payload, PARTIES, GivenKeys(keys))).der


def _opened(der: bytes, keys: list[Key]) -> bytes:
    opening = Opening({key.key_ID: key for key in keys})
    return asyncio.run(OneTimePad().open(cms.decode_enveloped(der), opening)).payload


def _keys_for(payload: bytes, lengths: list[int], octets: bytes) -> list[Key]:
    """Keys of these lengths, no more of them than are needed; the last is made long enough."""
    hidden = padded_size(len(payload))
    keys: list[Key] = []
    for index, length in enumerate(lengths):
        left = hidden - sum(len(key.key) - FIRST for key in keys)
        if len(keys) >= 2 and left <= 0:
            break
        if index == len(lengths) - 1:
            length = max(length, left + FIRST)
        keys.append(
            Key(f"key-{index:03}", bytes((octets[at % len(octets)] + at * 7 + index) % 256 for at in range(length)))
        )
    return keys


cases = st.builds(
    lambda payload, lengths, octets: (payload, _keys_for(payload, lengths, octets)),
    payloads,
    sizes,
    st.binary(min_size=1, max_size=50),
)


@given(cases)
def test_what_is_sealed_under_keys_of_any_sizes_opens_to_the_same_octets(case: tuple[bytes, list[Key]]) -> None:
    payload, keys = case
    assert _opened(_sealed(payload, keys), keys) == payload


@given(cases, st.data())
def test_no_octet_among_the_first_16_of_a_key_has_any_influence_on_the_ciphertext(
    case: tuple[bytes, list[Key]], data: st.DataObject
) -> None:
    """Of the first two keys they change the tag; of all others nothing at all."""
    payload, keys = case
    index = data.draw(st.integers(0, len(keys) - 1))
    other = data.draw(st.binary(min_size=FIRST, max_size=FIRST))
    changed = [*keys]
    changed[index] = Key(keys[index].key_ID, other + keys[index].key[FIRST:])
    before, after = (cms.decode_enveloped(_sealed(payload, some)) for some in (keys, changed))
    assert before.ciphertext == after.ciphertext
    if index >= 2:
        assert before == after


@pytest.mark.promise("Each octet of a pad hides one octet of one message")
@given(cases)
def test_each_octet_of_the_ciphertext_is_under_one_octet_that_is_used_for_nothing_else(
    case: tuple[bytes, list[Key]],
) -> None:
    payload, keys = case
    enveloped = cms.decode_enveloped(_sealed(payload, keys))
    hiding = b"".join(key.key[FIRST:] for key in sorted(keys, key=lambda key: key.key_ID.encode()))
    assert bytes(a ^ b for a, b in zip(enveloped.ciphertext, hiding, strict=False)) == bytes(pad(payload))
    assert len(hiding) >= len(enveloped.ciphertext)


@given(cases, st.data())
def test_a_key_with_another_octet_opens_nothing_or_changes_nothing(
    case: tuple[bytes, list[Key]], data: st.DataObject
) -> None:
    """One of the tag's octets is noticed; of those that hide, the tag says nothing, and the payload tells it."""
    payload, keys = case
    der = _sealed(payload, keys)
    index = data.draw(st.integers(0, len(keys) - 1))
    place = data.draw(st.integers(0, len(keys[index].key) - 1))
    octets = bytearray(keys[index].key)
    octets[place] ^= data.draw(st.integers(1, 255))
    changed = [*keys]
    changed[index] = Key(keys[index].key_ID, bytes(octets))
    hidden_before = sum(len(key.key) - FIRST for key in keys[:index])
    hides = place >= FIRST and hidden_before + place - FIRST < padded_size(len(payload))
    try:
        opened = _opened(der, changed)
    except BadTag:
        assert place < FIRST
        assert index < 2
    except BadStructure:
        assert hides
    else:
        # RFC 8439, 2.5: some bits of r are cleared before it is used.
        clamped = index == 0 and place in (3, 4, 7, 8, 11, 12, 15)
        assert hides or opened == payload
        assert place >= FIRST or index >= 2 or clamped


@given(cases, st.sampled_from(["fewer", "more", "short"]))
def test_what_is_no_pad_for_a_ciphertext_is_refused_by_who_seals_and_by_who_opens(
    case: tuple[bytes, list[Key]], change: str
) -> None:
    payload, keys = case
    if change == "fewer":
        wrong = keys[:-1]
    elif change == "more":
        wrong = [*keys, Key("z", bytes(32))]
    else:
        wrong = [*keys[:-1], Key("z", bytes(31))]
    hidden = padded_size(len(payload))
    if change == "more" and sum(len(key.key) - FIRST for key in keys) < hidden:
        return
    with pytest.raises((BadStructure, ValueError)):
        _sealed(payload, wrong)
    der = _sealed(payload, keys)
    enveloped = cms.decode_enveloped(der)
    assert isinstance(enveloped.content, cms.PadContent)
    content = cms.PadContent("2", "1", "alice-bob", 0, tuple(key.key_ID for key in wrong))
    forged = cms.AuthEnveloped(enveloped.recipients, content, enveloped.ciphertext, enveloped.tag)
    verified: list[bool] = []
    opening = Opening({key.key_ID: key for key in wrong}, verified=lambda: verified.append(True))
    with pytest.raises(BadStructure):
        asyncio.run(OneTimePad().open(cms.decode_enveloped(cms.encode_enveloped(forged)), opening))
    assert not verified


@given(
    payload=payloads,
    key_size=st.none() | st.integers(1, 4096),
    max_key_size=st.none() | st.integers(1, 1000) | st.integers(1, 40_000),
    min_key_size=st.none() | st.integers(1, 1000) | st.integers(1, 4096),
    per_request=st.none() | st.integers(0, 200),
    any_size=st.booleans(),
    key_IDs=st.lists(names, min_size=100, max_size=100, unique_by=str.casefold),
)
@example(bytes(500), 256, 256, 4096, 1, True, [str(number) for number in range(100)])
def test_whatever_a_kme_says_of_its_keys_what_is_planned_is_drawn_sealed_and_opened(
    payload: bytes,
    key_size: int | None,
    max_key_size: int | None,
    min_key_size: int | None,
    per_request: int | None,
    any_size: bool,
    key_IDs: list[str],
) -> None:
    """Or refused before a key is drawn: a KME has what it gives checked against what was asked for."""
    fields = {
        "key_size": key_size,
        "max_key_size": max_key_size,
        "min_key_size": min_key_size,
        "max_key_per_request": per_request,
    }
    said = {name: value for name, value in fields.items() if value is not None}
    status = status_from_reply({"source_KME_ID": "kme"} | said)
    try:
        plan = plan_pad(padded_size(len(payload)), status, any_size=any_size)
    except KMEMisconfigured:
        return
    if plan.size % 8:
        return
    assert 1 <= plan.number <= len(key_IDs)
    keys = [Key(key_ID, bytes(plan.size // 8)) for key_ID in key_IDs[: plan.number]]
    der = _sealed(payload, keys)
    assert _opened(der, keys) == payload
    content = cms.decode_enveloped(der).content
    assert isinstance(content, cms.PadContent)
    assert len(content.key_IDs) == plan.number
