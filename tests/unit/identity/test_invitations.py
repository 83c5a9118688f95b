"""Invitations: a peer document as text, and its fingerprint in words; what was changed or cut is refused.
Standard: relay/identity/invitation.py; the PGP word list, with a published vector.
"""

from __future__ import annotations

import base64
import json
import textwrap
import zlib
from collections.abc import Callable
from random import Random

import pytest

from relay.errors import ConfigError
from relay.identity import lines_of, read_invitation, same_words, write_invitation
from relay.identity.document import MAX_DOCUMENT
from relay.identity.invitation import BEGIN, END, MAX_INVITATION
from relay.identity.words import _lists, words_of
from tests.testlib.identities import Identities, Person


@pytest.fixture
def alice(identities: Identities) -> Person:
    return identities.alice


def test_the_words_are_those_of_the_pgp_word_list() -> None:
    """The vector that others publish, of the fingerprint of Phil Zimmermann's key."""
    digits = "E582 94F2 E9A2 2748 6E8B 061B 31CC 528F D7FA 3F19"
    words = (
        "topmost Istanbul Pluto vagabond treadmill Pacific brackish dictator goldfish Medusa "
        "afflict bravado chatter revolver Dupont midsummer"
    )
    assert words_of(digits) == tuple(words.split())
    assert lines_of(digits)[0] == "topmost Istanbul Pluto vagabond"
    assert same_words(words.upper().replace(" ", ", "), digits)


def test_no_word_stands_for_two_octets() -> None:
    even, odd = _lists()
    assert len({*even, *odd}) == len({word.lower() for word in (*even, *odd)}) == 512


def test_words_that_were_exchanged_left_out_or_are_others_are_not_the_same(alice: Person) -> None:
    words = words_of(alice.identity.fingerprint)
    assert len(words) == 16
    assert same_words(" ".join(words), alice.identity.fingerprint)
    for wrong in (words[:-1], (words[1], words[0], *words[2:]), (*words, "Zulu"), ()):
        assert not same_words(" ".join(wrong), alice.identity.fingerprint)


def test_what_was_written_is_read_whatever_stands_around_it(alice: Person) -> None:
    text = write_invitation(alice.document)
    assert read_invitation(text) == alice.document
    mailed = "Dear Bob,\n\n" + text.replace("\n", "  \r\n") + "\nYours, Alice\n"
    assert read_invitation(mailed) == alice.document
    assert max(map(len, text.splitlines())) < 78
    assert text.isascii()


def test_it_says_for_people_what_it_carries(alice: Person) -> None:
    lines = write_invitation(alice.document).splitlines()
    assert lines[0] == BEGIN
    assert "Site: alice" in lines
    assert "Domain: alice.example" in lines
    assert "SAE: 2" in lines
    assert "KME group: alice-bob" in lines
    assert f"Words: {lines_of(alice.identity.fingerprint)[0]}" in lines


def _without_a_line(text: str) -> str:
    lines = text.splitlines()
    return "\n".join(lines[:40] + lines[41:])


def _armour(document: bytes) -> Callable[[str], str]:
    """The lines of a good invitation, over another content."""

    def change(text: str) -> str:
        header = text.partition("\n\n")[0]
        packed = base64.b64encode(zlib.compress(document)).decode()
        return "\n".join((header, "", *textwrap.wrap(packed, 64), END))

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace(END, ""), "cut off"),
        (lambda text: text[: len(text) // 2], "cut off"),
        (_without_a_line, "was changed or cut"),
        (lambda text: text.replace("\n\n", "\n"), "no empty line"),
        (lambda text: text + text, "not one invitation"),
        (lambda text: "", "not one invitation"),
        (lambda text: text.replace("SAE: 2", "SAE: 3"), "something else"),
        (lambda text: text.replace("Site: alice", "Site: alina"), "something else"),
        (lambda text: text.replace("Words: ", "Words: Zulu ", 1), "something else"),
        (lambda text: text.replace("Site: alice", "Site: alice\nNote: trust me"), "something else"),
        (lambda text: text.replace("\n\n", "\n\n!", 1), "was changed or cut"),
        (_armour(b"x" * (MAX_DOCUMENT + 2)), "not whole"),
        (_armour(b"{}"), "not a peer document"),
        (lambda text: "x" * (MAX_INVITATION + 1), "at most"),
    ],
)  # fmt: skip
def test_what_was_changed_or_cut_is_refused(alice: Person, change: Callable[[str], str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_invitation(change(write_invitation(alice.document)))


def test_a_small_invitation_that_would_become_a_large_document_is_not_unpacked(alice: Person) -> None:
    bomb = _armour(bytes(100 * MAX_DOCUMENT))(write_invitation(alice.document))
    assert len(bomb) < MAX_INVITATION
    with pytest.raises(ConfigError, match="not whole"):
        read_invitation(bomb)


@pytest.mark.promise("An invitation exchanged on its way")
def test_another_document_behind_the_same_lines_is_refused(identities: Identities) -> None:
    """What a person reads in front, and what is pinned, is never of two sites."""
    with pytest.raises(ConfigError, match="something else"):
        read_invitation(_armour(identities.eve.document)(write_invitation(identities.alice.document)))


def test_whatever_is_edited_is_refused_or_makes_no_difference(alice: Person) -> None:
    """Half of it one character, half a whole piece that is gone, doubled or elsewhere; never another error."""
    text, random = write_invitation(alice.document), Random(1)
    refused = 0
    for _ in range(400):
        start, end = sorted(random.sample(range(len(text)), 2))
        piece = random.choice(["", text[start:end] * 2, text[:40], "\n", "\x00", "é", "A"])
        end = start + 1 if random.random() < 0.5 else end
        try:
            assert read_invitation(text[:start] + piece + text[end:]) == alice.document
        except ConfigError:
            refused += 1
    assert refused > 300


def test_a_document_with_a_changed_signature_is_refused(alice: Person) -> None:
    file = json.loads(alice.document)
    octets = bytearray(base64.b64decode(file["signature"]))
    octets[100] ^= 1
    changed = json.dumps(file | {"signature": base64.b64encode(octets).decode()}).encode()
    with pytest.raises(ConfigError, match="signature"):
        read_invitation(_armour(changed)(write_invitation(alice.document)))
