"""Address fields: ours reads what every reader sees, side by side with Python's email and Dovecot, or says that there is doubt.
Standard: RFC 5322 3.4 and 4.4; no address that another reader finds may be missing, whatever the field is.
"""

from __future__ import annotations

import asyncio
import gc
import time

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from relay.formats import addresses
from relay.formats.addresses import MAX_ADDRESSES, MAX_CHARACTERS, MAX_OCTETS, read_addresses
from relay.formats.doubt import InDoubt
from tests.testlib.address_fields import FIELDS
from tests.testlib.dovecot import dovecot, requires_dovecot
from tests.testlib.long import sized
from tests.testlib.readers import Seen, seen_by_dovecot, seen_by_python
from tests.testlib.speed import slowness
from tests.testlib.spellings import harmless


def read(field: str) -> list[str]:
    return [str(mailbox) for mailbox in read_addresses(field.encode())]


@pytest.mark.parametrize(
    ("field", "addresses"),
    [
        ("ann@alice.example", ["ann@alice.example"]),
        (" Ann Archer <Ann@Alice.example> ", ["Ann@Alice.example"]),
        ('"Boss \\\\" <ceo@alice.example>, "b" <x@evil.example>', ["ceo@alice.example", "x@evil.example"]),
        ('(a (b) ") <ceo@alice.example>, "x" <x@evil.example>', ["ceo@alice.example", "x@evil.example"]),
        ("<ceo@ alice.example>", ["ceo@alice.example"]),
        ("ceo@(c)alice.example", ["ceo@alice.example"]),
        ("(\\\\) ann@alice.example (x)", ["ann@alice.example"]),
        ("(\\)) ann.b (c) @\r\n\t(d) alice.example", ["ann.b@alice.example"]),
        ('"ceo@alice.example" <x@evil.example>', ["x@evil.example"]),
        ("(ceo@alice.example) <x@evil.example>", ["x@evil.example"]),
        ("a@b.example,, <c@d.example> ,", ["a@b.example", "c@d.example"]),
        ("team: ann@a.example, <ben@b.example>;, c@d.example", ["ann@a.example", "ben@b.example", "c@d.example"]),
        ("nobody:;, a@b.example", ["a@b.example"]),
        ('John Q. "the" Public <a@b.example>', ["a@b.example"]),
        ('"a b"@c.example', ["a b@c.example"]),
        ('<"ann"@alice.example>', ["ann@alice.example"]),
        ("ann@[192.0.2.1]", ["ann@[192.0.2.1]"]),
        ("Jörg <jörg@bücher.example>", ["jörg@bücher.example"]),
        ("=?utf-8?q?M=C3=BCller=2C_J=C3=B6rg_=28Firma=29?= <a@b.example>", ["a@b.example"]),
        ('"=?utf-8?q?J=C3=B6rg M.?=" <a@b.example> (=?utf-8?q?zu_Hause?=)', ["a@b.example"]),
        ("ann@alice.example <ann@alice.example>", ["ann@alice.example"]),
        ("a@b.example, a@b.example", ["a@b.example"]),
        ("Foo, Inc. <a@b.example>", ["a@b.example"]),
        ("Ann [home] <a@b.example>", ["a@b.example"]),
        ("=?utf-8?q?a,?= <a@b.example>", ["a@b.example"]),
        ("=?nothing <a@b.example>", ["a@b.example"]),
    ],
)
def test_addresses_are_what_stands_where_an_address_stands(field: str, addresses: list[str]) -> None:
    assert read(field) == addresses


@pytest.mark.parametrize(
    "field",
    [
        "",
        "Ann",
        "<>",
        "nobody:;",
        "a@b.example c@d.example",
        "a@b.example <c@d.example>",
        "Ann <a@b.example> <c@d.example>",
        "Ann <a@b.example> c@d.example",
        "<@a.example,@b.example:c@d.example>",
        "team: a@b.example",
        "team: group: a@b.example;;",
        "a@b.example;",
        "a@b.example(",
        "a@b.example)",
        '"Ann <a@b.example>',
        "Ann\\ <a@b.example>",
        "<a@b.example",
        "a@b.example>",
        "a@b@c.example",
        "@b.example",
        "a@",
        ".a@b.example",
        "a..b@c.example",
        "a@b.example.",
        "a(c)b@c.example",
        '"a".b@c.example',
        '"a@evil.example"@c.example',
        '"<a@evil.example>"@c.example',
        '""@c.example',
        "a@[not a literal]",
        "a@[[192.0.2.1]]",
        "a\0@b.example",
        "a@b.example\x0c",
        "Ann\u2028 <a@b.example>",
        "a\u00a0b@c.example",
        "ceo\uff20alice.example@evil.example",
        "a@\uff42ob.example",
        "a@b.example,\r\n \r\n c@d.example",
        "Ann <a@b.example>\r\n\t",
        '"Ann\\\r\n " <a@b.example>',
        "(" * 9 + ")" * 9 + "a@b.example",
        "=?utf-8?q?ceo=40alice.example=2C?= <x@evil.example>",
        "=?utf-8?b?PGNlb0BhbGljZS5leGFtcGxlPiw=?= <x@evil.example>",
        '=?utf-8?q?=22?= "ceo@alice.example," <x@evil.example>',
        "ann@alice (=?utf-8?q?=29=2Eexample?=)",
        "=?utf-8?q?ann?=@alice.example",
        "ann@alice.example. Boss",
        "ann@alice.example.\r\n Boss",
        "Ann. ceo@alice.example",
        "ann . b@alice.example",
        "ann@alice.(c)example",
        "Ann <ann@alice.example .b>",
        "a" * MAX_CHARACTERS + "@b.example",
        ",".join(f"a{number}@b.example" for number in range(MAX_ADDRESSES + 1)),
        "a@b.example" + " " * MAX_OCTETS,
    ],
)
def test_what_readers_may_read_differently_is_in_doubt(field: str) -> None:
    with pytest.raises(InDoubt):
        read(field)


@pytest.mark.parametrize("name", harmless.AUTHORS)
def test_an_author_as_programs_and_people_write_them_is_in_no_doubt(name: str) -> None:
    assert list(map(str, read_addresses(harmless.AUTHORS[name]))) == ["clerk@bank.example"]


def test_what_an_address_permits_wants_a_name_by_the_standard() -> None:
    """A mail server may make an address of the first word."""
    with pytest.raises(InDoubt):
        read_addresses(b"ceo, Ann <ann@alice.example>", by_standard=True)


@pytest.mark.parametrize(
    "field",
    [
        b"J\xf6rg <a@b.example>, c@d.example",
        b"a@b.example (J\xf6rg)",
        b"j\xf6rg@b.example",
        b"[x] c@d.example <a@b.example>",
        b"[x] <a@b.example> <",
        b'[x] "y <a@b.example>',
        b"[x] (y <a@b.example>",
        b"[x] \\<a@b.example>",
        b"[x] =?utf-8?q?c=40d.example?= <a@b.example>",
        b"[x] =?utf-8?b?PGE=?= <a@b.example>",
        b"[x] =?x-none?q?y?= <a@b.example>",
        b"[x] =?utf-8?q?y <a@b.example>",
        b"[x]\r\n \r\n <a@b.example>",
        b"[x]\0 <a@b.example>",
    ],
)
def test_a_name_behind_which_somebody_else_may_be_meant_is_in_doubt(field: bytes) -> None:
    with pytest.raises(InDoubt):
        read_addresses(field)


# --- side by side with other readers -------------------------------------------------------------------------


def ours(field: bytes) -> Seen | None:
    """Domains in lower case, as `Seen` has them; None where there is doubt."""
    try:
        return {(local, domain.lower()) for local, domain in read_addresses(field)}
    except InDoubt:
        return None


def generated(examples: int) -> list[bytes]:
    """The same fields in every run."""
    found: dict[bytes, None] = {}

    @settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(FIELDS)
    def collect(field: bytes) -> None:
        found[field] = None

    collect()
    return list(found)


@settings(max_examples=200, deadline=None)
@given(FIELDS)
def test_python_finds_no_address_that_we_do_not(field: bytes) -> None:
    found = ours(field)
    assert found is None or not seen_by_python(field) - found


@pytest.mark.promise(
    "A sender who must write sealed is not impersonated by a From field that mail programs read otherwise"
)
@requires_dovecot
async def test_dovecot_finds_no_address_that_we_do_not() -> None:
    fields = generated(sized(300, 20_000))
    async with dovecot() as server:
        seen = await asyncio.to_thread(seen_by_dovecot, server, fields)
    readable = [(field, found, other) for field, other in zip(fields, seen, strict=True) if (found := ours(field))]
    assert len(readable) > len(fields) / 10
    assert sum(found == other for _, found, other in readable) > len(readable) / 4  # it was the field that we sent
    assert not [(field, found, other) for field, found, other in readable if other - found]


# --- fields that shall cost time -----------------------------------------------------------------------------

HOSTILE = {
    "marks": "a" + "\u0315\u0300" * 4000 + "@b.example",
    "marks in the domain": "a@" + "\u0315\u0300" * 4000 + ".example",
    "marks in every address": ",".join("a" + "\u0315\u0300" * 230 + "@b.example" for _ in range(8)),
    "opened comments": "(" * 8000,
    "comments": "()" * 4000 + "a@b.example",
    "quotes": '"' * 8000,
    "dots": "a." * 4000 + "a@b.example",
    "commas": "a@b," * 2000,
    "blanks": " " * 8000 + "a@b.example",
    "folds": "\r\n " * 2700 + "a@b.example",
    "beginnings of encoded words": "=?" * 4000,
    "encoded words": "=?utf-8?q?b?= " * 500 + "<a@b.example>",
    "a slow charset": "=?punycode?q?ab-" + "9z" * 3900 + "?= <a@b.example>",
}


@pytest.mark.promise("One mail does not hold up the others")
@pytest.mark.parametrize("times", [1, 130])
@pytest.mark.parametrize("name", list(HOSTILE))
def test_no_field_takes_long(name: str, times: int) -> None:
    field = (HOSTILE[name] * times).encode()
    took = []
    gc.disable()  # it looks at all that the tests before have left behind
    try:
        for _ in range(3):
            began = time.thread_time()
            ours(field)
            took.append(time.thread_time() - began)
    finally:
        gc.enable()
    assert min(took) < 0.2 * slowness()  # 15 ms here at most; a megabyte takes none at all


@settings(deadline=None)
@given(FIELDS)
def test_the_short_way_for_plain_fields_finds_what_the_long_one_does(field: bytes) -> None:
    """With what may stand before or behind it, too."""
    fields = [before + field + end for before in (b"", b"Ann <", b'"Archer, Ann" <') for end in (b"", b"\r\n", b">")]
    plain = [each for each in fields if addresses._PLAIN.fullmatch(each)]
    found = [read_addresses(each) for each in plain]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(addresses, "PLAIN_OCTETS", 0)
        assert [read_addresses(each) for each in plain] == found
