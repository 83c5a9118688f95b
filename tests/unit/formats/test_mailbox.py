"""One spelling for each mailbox, and the same answers about characters under every Python.
Standard: relay/FORMAT.md, 3.1 and 7; relay/formats/unicode_14.txt has what Unicode 14.0 assigns.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from relay.formats import characters
from relay.formats.mailbox import fold_domain, folded_domain, folded_mailbox, is_folded
from relay.mail import Recipient

ROOT = Path(__file__).parents[3]
OTHERS = [f"python3.{minor}" for minor in (11, 13) if minor != sys.version_info.minor]
PYTHONS = [sys.executable, *filter(None, (shutil.which(each, path="/usr/bin") for each in OTHERS))]
"""Of Unicode 14.0 and 15.1, where both are installed."""
FOLDED = "24a108f1ccb3e9350523146576d77fbc7e1e25e2217b3a2065c65e50888bee7f"
"""SHA-256 over what is made of each character, ideographs, syllables and private use left out."""
_DIGEST = """
import hashlib
from relay.formats.characters import casefold, is_assigned, is_printable, lower, nfc, nfkc
from relay.formats.mailbox import folded_domain
digest = hashlib.sha256()
for begin, end in (0, 0x3400), (0xA000, 0xAC00), (0xD7A4, 0xE010), (0xF8F0, 0x17010), (0x18CD0, 0x20010), (0xE0000, 0xE1010):
    for char in map(chr, range(begin, end)):
        found = [is_printable(char), is_assigned(char)]
        if found[1]:
            found += [lower(char), casefold(char), nfc(char), nfkc(char), folded_domain(char + ".example")]
        digest.update(repr(found).encode("utf-8", "surrogatepass"))
print(digest.hexdigest())
"""


@pytest.mark.parametrize("python", PYTHONS)
def test_what_is_made_of_each_character_does_not_depend_on_the_python(python: str) -> None:
    done = subprocess.run([python, "-c", _DIGEST], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == FOLDED


def test_what_is_assigned_is_what_unicode_14_assigns_and_printable_as_far_as_python_says_so() -> None:
    for number in (*range(0x3400), *range(0xA000, 0xAC00), *range(0xD7A4, 0x17010), *range(0x18CD0, 0x20010)):
        char = chr(number)
        if characters.is_assigned(char):
            assert unicodedata.category(char) != "Cn"
            assert characters.is_printable(char) == char.isprintable()
        elif unicodedata.unidata_version == "14.0.0":
            assert unicodedata.category(char) == "Cn"


@pytest.mark.parametrize("name", ["lower", "casefold", "nfc", "nfkc"])
def test_what_unicode_14_does_not_assign_stands_for_itself(name: str) -> None:
    # Unicode 16 makes of the first three capital letters, and of the last one a vowel sign that can be decomposed.
    later = "\ua7cb\u1c89\U00010d50\U0001fae8\U000113c5"
    change = getattr(characters, name)
    assert change(later) == later
    assert change(f"\u212b{later}\u212b") == change("\u212b") + later + change("\u212b")


@pytest.mark.parametrize(
    ("folded", *"abc"),
    [
        ("ben@bob.example", "ben@BOB.Example", '"ben"@bob.example', '"b\\en"@bob.example'),
        ("ben@xn--bcher-kva.example", "ben@b\xfccher.example", "ben@bu\u0308cher.example", "ben@B\xdcCHER.example"),
        ('"b n"@bob.example', '"b\\ n"@bob.example', '"b n"@bob.example', '"b n"@BOB.example'),
        ('"b..n"@bob.example', "b..n@bob.example", '"b..n"@bob.example', '"b.\\.n"@bob.example'),
        (
            '"b\\"\\\\n"@bob.example',
            '"b\\"\\\\n"@bob.example',
            '"b\\"\\\\\\n"@bob.example',
            '"\\b\\"\\\\n"@bob.example',
        ),
        ("gr\xfc\xdfe@bob.example", '"gr\xfc\xdfe"@bob.example', "gr\xfc\xdfe@bob.example", "gr\xfc\xdfe@BOB.example"),
        ("b@[ipv6:2001:db8::1]", "b@[IPv6:2001:DB8::1]", '"b"@[IPv6:2001:db8::1]', "b@[ipv6:2001:db8::1]"),
    ],
)
def test_a_mailbox_has_one_spelling(folded: str, a: str, b: str, c: str) -> None:
    assert {Recipient(each).mailbox for each in (folded, a, b, c)} == {folded}
    assert is_folded(folded)
    assert [each for each in (a, b, c) if is_folded(each)] == [each for each in (a, b, c) if each == folded]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Ben@bob.example", "ben@bob.example"),
        ("\xe9@bob.example", "e\u0301@bob.example"),
        ("b\xfccher@bob.example", "xn--bcher-kva@bob.example"),
        ("ben@stra\xdfe.example", "ben@strasse.example"),
        ("ben@\uff42ob.example", "ben@bob.example"),
        ("ben@bob.example.", "ben@bob.example"),
        ("ben@\U00010570.example", "ben@\U00010d50.example"),
    ],
)
def test_mailboxes_that_differ(one: str, other: str) -> None:
    assert folded_mailbox(one) != folded_mailbox(other)


@pytest.mark.parametrize(
    "address",
    [
        "", "@bob.example", "ben@", "ben@@bob.example", "b n@bob.example", "b\x00n@bob.example", "b\x7fn@bob.example",
        "b..n@bob.example", ".ben@bob.example", "ben.@bob.example", '"ben"@bob.example', '"b\\ n"@bob.example',
        '"b<n"@bob.example', '"b>n"@bob.example', "b<n@bob.example", '"b n@bob.example', 'b"n@bob.example',
        "b\u200dn@bob.example", "b\ue000n@bob.example", "b\ud800n@bob.example", "b\ufdd0n@bob.example",
        "ben@Bob.example", "ben@b\xfccher.example", "ben@bob..example", "ben@bob.example.", "ben@b b.example",
        f"ben@{'b' * 64}.example", f"ben@{'b.' * 124}example", "ben@[]", "ben@[IPv6:::1]", "ben@[::1", "ben@[a]b",
        "ben", "ben\n", "ben@bob.example\n",
    ],
)  # fmt: skip
def test_what_is_no_address_in_its_one_spelling(address: str) -> None:
    assert not is_folded(address)
    assert is_folded(address, local_alone=True) == (address == "ben")


@given(st.text(max_size=12), st.text(max_size=12))
def test_the_one_spelling_is_that_of_itself(local: str, domain: str) -> None:
    folded = folded_mailbox(f"{local}@{domain}")
    assert folded_mailbox(folded) == folded
    assert folded_domain(folded_domain(domain)) == folded_domain(domain)


@given(st.text(st.sampled_from('ab."\\ @<\xdf'), max_size=8))
def test_whatever_is_in_quotes_means_the_same_in_its_one_spelling(text: str) -> None:
    quoted = '"' + "".join("\\" + char if char in '"\\' else char for char in text) + '"'
    everywhere = '"' + "".join("\\" + char for char in text) + '"'
    folded = folded_mailbox(f"{quoted}@bob.example")
    assert folded == folded_mailbox(f"{everywhere}@bob.example")
    assert is_folded(folded) == ("<" not in text)


@pytest.mark.parametrize("label", ["\U00010d50", "\U0001fae8", "\u2152", "a\u034fb", "\ufb00", "\xfc" * 60])
def test_a_domain_that_programs_would_read_otherwise_is_none(label: str) -> None:
    with pytest.raises(ValueError, match="is not a label"):
        fold_domain(f"{label}.example")
