"""Whose addresses a group of a directory has: groups within groups, Active Directory's forms, and what is in doubt.
Standard: RFC 4519, MS-ADTS; the answers are those of a directory, the rest is the relay's own.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest

from relay.errors import ConfigError
from relay.groups.ldap import LDAPEntry, LDAPUnanswered, entries
from relay.groups.members import MAX_LOOKED_UP, People, folded
from relay.groups.written import MARK, losses, parts, text_of

BASE = "dc=alice,dc=example"


def person(name: str, *mails: str, **more: list[str]) -> LDAPEntry:
    return LDAPEntry(f"cn={name},{BASE}", {"objectclass": ["person"], "mail": list(mails)} | more)


def group(name: str, *members: str, **more: list[str]) -> LDAPEntry:
    return LDAPEntry(
        f"cn={name},{BASE}", {"objectclass": ["group"], "member": [f"cn={each},{BASE}" for each in members]} | more
    )


class Directory:
    """Answers from these entries; those `hidden` are not found by the search of all."""

    def __init__(self, *found: LDAPEntry, hidden: Sequence[LDAPEntry] = ()) -> None:
        self.all = list(found)
        self.by_dn = {folded(each.dn): each for each in (*found, *hidden)}
        self.asked: list[tuple[str, str, tuple[str, ...]]] = []

    def search(self, base: str, scope: str, _: str, attributes: Sequence[str]) -> list[LDAPEntry]:
        self.asked.append((base, scope, tuple(attributes)))
        if scope == "sub":
            return self.all
        return [self.by_dn[folded(base)]] if folded(base) in self.by_dn else []

    def of(self, name: str) -> set[str]:
        return People(self.search, BASE).group(f"cn={name},{BASE}").addresses


def test_groups_within_groups_count_also_in_a_circle() -> None:
    of = Directory(
        group("board", "ann", "law"), group("law", "ben", "board"), person("ann", "Ann@Alice.example"), person("ben", "ben@alice.example")
    )  # fmt: skip
    assert of.of("board") == of.of("law") == {"ann@alice.example", "ben@alice.example"}


def test_all_addresses_of_a_person_count_and_only_those_of_mail() -> None:
    proxies = ["SMTP:ann@alice.example", "smtp:a.n@alice.example", "X500:/o=Alice", "sip:ann@alice.example"]
    assert Directory(group("board", "ann"), person("ann", proxyaddresses=proxies)).of("board") == {
        "ann@alice.example",
        "a.n@alice.example",
    }


def test_a_dn_is_the_same_in_other_spellings() -> None:
    board = group("board", member=["CN=Ann, DC=Alice,  DC=example"])
    assert Directory(board, person("ann", "ann@alice.example")).of("board") == {"ann@alice.example"}


def test_a_member_that_cannot_be_found_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"cn=gone,.*, a member of cn=board,.*, is not there"):
        Directory(group("board", "gone")).of("board")


def test_a_person_without_an_address_is_named() -> None:
    found = People(Directory(group("board", "ann"), hidden=[person("ann")]).search, BASE).group(f"cn=board,{BASE}")
    assert (found.addresses, found.without) == (set(), [f"cn=ann,{BASE}"])


def test_an_address_that_would_be_a_pattern_is_not_taken() -> None:
    of = Directory(group("board", "ann"), person("ann", "*@alice.example", "n/a", "ann@alice.example"))
    found = People(of.search, BASE).group(f"cn=board,{BASE}")
    assert found.addresses == {"ann@alice.example"}
    assert found.unusable == [f"cn=ann,{BASE}: *@alice.example", f"cn=ann,{BASE}: n/a"]


def test_members_that_come_in_ranges_are_asked_for_until_the_last() -> None:
    people = [person(f"p{number}", f"p{number}@alice.example") for number in range(5)]
    names = [each.dn for each in people]
    board = LDAPEntry(f"cn=board,{BASE}", {"objectclass": ["group"], "member": [], "member;range=0-1": names[:2]})
    later = {
        "member;range=2-*": {"member;range=2-3": names[2:4]},
        "member;range=4-*": {"member;range=4-*": names[4:]},
    }

    class Ranged(Directory):
        def search(self, base: str, scope: str, filter_: str, attributes: Sequence[str]) -> list[LDAPEntry]:
            if attributes[0] in later:
                return [LDAPEntry(base, later[attributes[0]])]
            return super().search(base, scope, filter_, attributes)

    assert len(Ranged(board, *people).of("board")) == 5
    del later["member;range=4-*"]
    with pytest.raises(ConfigError, match="from number 4 on were not given"):
        Ranged(board, *people).of("board")


def test_what_is_no_group_is_an_error() -> None:
    with pytest.raises(ConfigError, match="is no group"):
        Directory(person("ann", "ann@alice.example")).of("ann")


def test_a_base_that_has_nobody_is_an_error_and_not_a_search_for_each() -> None:
    everybody = [person(str(number)) for number in range(MAX_LOOKED_UP + 1)]
    of = Directory(group("board", *map(str, range(MAX_LOOKED_UP + 1))), hidden=everybody)
    with pytest.raises(ConfigError, match="write a wider base"):
        of.of("board")


def test_ldif_is_read_with_base64_and_without_what_is_no_text() -> None:
    text = b"dn:: Y249QW5uw6k=\nmail: ann@alice.example\njpegPhoto:: /9j/\n# a comment\nmail:  b@alice.example\n\n\ndn: cn=b\n"
    assert list(entries(io.BytesIO(text))) == [
        LDAPEntry("cn=Ann\N{LATIN SMALL LETTER E WITH ACUTE}", {"mail": ["ann@alice.example", "b@alice.example"]}),
        LDAPEntry("cn=b"),
    ]


@pytest.mark.parametrize("text", [b"mail: a@b\n", b"dn: cn=a\nno colon\n", b"dn:: !\n", b"\xff\n"])
def test_an_answer_that_is_no_ldif_counts_as_none(text: bytes) -> None:
    with pytest.raises(LDAPUnanswered):
        list(entries(io.BytesIO(text)))


def test_what_is_typed_by_hand_stays_octet_for_octet() -> None:
    by_hand = '# ours\nboard = ["chair@alice.example"] # two\n'
    once = text_of(by_hand, {"law": {"b@alice.example", "a@alice.example"}})
    above, groups = parts(once)
    assert once.startswith(by_hand)
    assert groups == {"law": {"a@alice.example", "b@alice.example"}}
    assert text_of(above, groups) == once
    assert text_of("", groups).startswith(MARK)


def test_a_group_that_is_typed_by_hand_too_is_an_error() -> None:
    with pytest.raises(ConfigError, match="law: typed by hand"):
        text_of('law = ["x@alice.example"]\n', {"law": {"a@alice.example"}})


@pytest.mark.parametrize(
    ("before", "after", "lost"),
    [
        ({}, {"law": "ab"}, []),
        ({"law": "abcd"}, {"law": "cdx"}, []),
        ({"law": "abcd"}, {"law": "dxyz"}, ["law"]),
        ({"law": "ab"}, {"law": ""}, ["law"]),
        ({}, {"law": ""}, ["law"]),
        ({"law": "ab", "board": "c"}, {"law": "ab"}, ["board"]),
    ],
)
def test_a_group_that_loses_most_of_its_people_is_named(
    before: dict[str, str], after: dict[str, str], lost: list[str]
) -> None:
    assert [name for name, _ in losses(before, after)] == lost
