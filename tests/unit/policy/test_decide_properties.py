"""What holds of every decision: the more specific file wins, and no address leads out of its own domain's files.
Standard: policies/README.md; RFC 5321 4.1.2, UTS 46.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import idna
import pytest
from hypothesis import example, given, strategies as st

from relay.errors import PolicyHolds, RelayError
from relay.formats.mailbox import fold_domain
from relay.policy.decide import PolicySet
from relay.policy.load import load_policies
from relay.policy.names import candidates, parse_address, scope_of
from tests.testlib.long import sized
from tests.testlib.policy_files import AES, PEERS, named, write

LABELS = st.sampled_from(["a", "b", "bob", "default", "xn--bcher-kva"])
DOMAINS = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
LOCALS = st.sampled_from(["x", "y", "x+t", "x+t+u", "+x", "default", "o'brien", ".x", "a/b", "x.toml", "ü"])
ADDRESSES = st.builds(lambda local, domain: f"{local}@{domain}", LOCALS, DOMAINS)
NASTY = st.text(alphabet=st.sampled_from("aBx.+@/\\%\"'[]<>-_ ;,:()\0\r\n\t\x7füß\u0308\u200d\ud800\u3002\uff2b2F"))


def from_files(tmp: Path, files: Mapping[str, bool]) -> PolicySet:
    """A policy set of empty meaning: names, and whether each has subdomains."""
    texts = {
        name: AES + ("subdomains = true" if subdomains and scope_of(name)[0] == "domain" else "")
        for name, subdomains in files.items()
    }
    return load_policies(write(tmp, texts), PEERS)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[dict[str, bool], str]:
    """Some files around one recipient, and the recipient."""
    recipient = draw(ADDRESSES)
    near = [name for name, _ in candidates(parse_address(recipient))]
    far = [name for name, _ in candidates(parse_address(draw(ADDRESSES)))]
    names = draw(st.lists(st.sampled_from(near + far), min_size=1, unique=True))
    return {name: draw(st.booleans()) for name in names}, recipient


@given(world=worlds())
def test_the_more_specific_file_always_wins(
    tmp_path_factory: pytest.TempPathFactory, world: tuple[dict[str, bool], str]
) -> None:
    files, recipient = world
    policies = from_files(tmp_path_factory.mktemp("world"), files)
    local, _, domain = recipient.rpartition("@")
    quoted = local.replace("'", "%27").replace("/", "%2F").replace("ü", "%C3%BC")
    quoted = "%2E" + quoted[1:] if quoted.startswith(".") else quoted
    untagged = quoted.split("+")[0] or quoted
    labels = domain.split(".")
    parents = [".".join(labels[place:]) for place in range(1, len(labels))]
    order = [f"{domain}/{quoted}.toml", f"{domain}/{untagged}.toml", f"{domain}.toml"]
    order += [f"{parent}.toml" for parent in parents if files.get(f"{parent}.toml") and parent != "default"]
    expected = next((name for name in [*order, "default.toml"] if name in files), None)
    if expected is None:
        with pytest.raises(PolicyHolds):
            policies.decide("", recipient)
    else:
        assert named(policies.decide("", recipient), policies.directory) == expected


@given(
    sender=NASTY,
    recipient=st.one_of(
        ADDRESSES, NASTY, st.text(), st.builds(lambda local, domain: f"{local}@{domain}", NASTY, DOMAINS)
    ),
)
def test_decide_and_explain_never_differ(with_default: PolicySet, sender: str, recipient: str) -> None:
    explanation = with_default.explain(sender, recipient)
    try:
        decision = with_default.decide(sender, recipient)
    except PolicyHolds as held:
        assert explanation.decision is None
        assert explanation.held == str(held)
    else:
        assert explanation.decision == decision
        assert [look.file for look in explanation.lookups if look.decides] == [named(decision, with_default.directory)]


@given(
    hostile=st.one_of(NASTY, st.text(), st.sampled_from(["bob.example/alice", "../clear.example", "%2e%2e"])),
    domain=st.sampled_from(
        ["@bob.example", "@clear.example", "@default", "@bob.example/alice", "@\uff42ob.example", ""]
    ),
)
@example(hostile="2@\xdf", domain="")
def test_a_hostile_recipient_is_decided_by_a_file_of_its_own_domain_or_held(
    with_default: PolicySet, hostile: str, domain: str
) -> None:
    recipient = hostile + domain
    try:
        decision = with_default.decide("", recipient)
    except RelayError:
        return
    own = recipient.rpartition("@")[2]
    name = named(decision, with_default.directory)
    covered = with_default.files[name].domain
    folded = parse_address(recipient).domain
    assert folded == (own.lower() if own.isascii() else fold_domain(own))
    expect_what_the_next_hop_sees(own)
    assert name == "default.toml" or folded == covered or folded.endswith("." + covered)


@given(recipient=st.one_of(ADDRESSES, st.builds(lambda local: f"{local}@bob.example", st.text(min_size=1))))
def test_every_address_has_one_file_name_and_it_leads_back(recipient: str) -> None:
    try:
        address = parse_address(recipient)
    except ValueError:
        return
    name, _ = next(candidates(address))
    assert scope_of(name) == ("person", address.domain)
    assert re.fullmatch(r"[a-z0-9._-]+/(?!\.)[a-z0-9._+%A-F-]+", name)


def characters(codes: Iterable[int]) -> Iterator[int]:
    """Those of these that are changed by folding or are no plain letters, and some of the others, which are all alike."""
    for code in codes:
        character = chr(code)
        alike = unicodedata.category(character) in ("Lo", "Cn", "Co", "Cs") and not unicodedata.combining(character)
        if not alike or unicodedata.normalize("NFKC", character).casefold() != character or code % sized(16, 1) == 0:
            yield code


def test_folding_an_address_twice_changes_nothing() -> None:
    for code in characters(range(0x20000)):
        try:
            once = parse_address(f"{chr(code)}x@a{chr(code)}.example")
        except ValueError:
            continue
        assert parse_address(f"{once.local}@{once.domain}") == once


def expect_what_the_next_hop_sees(domain: str) -> None:
    """Unless it is refused, a domain is folded as UTS 46, which other programs use, maps it."""
    try:
        ours = fold_domain(domain)
        mapped = idna.uts46_remap(domain, std3_rules=True, transitional=False)
    except (ValueError, idna.IDNAError):
        return
    labels = (each if each.isascii() else f"xn--{each.encode('punycode').decode()}" for each in mapped.split("."))
    assert ours == ".".join(labels)


@given(domain=st.text(min_size=1, max_size=8))
def test_a_domain_is_refused_or_folded_to_what_the_next_hop_sees(domain: str) -> None:
    expect_what_the_next_hop_sees(domain)


def test_every_character_in_a_domain_is_refused_or_folded_to_what_the_next_hop_sees() -> None:
    for code in characters((*range(0x80, 0x20000), *range(0xE0000, 0xE0200))):
        expect_what_the_next_hop_sees(f"b{chr(code)}b")
