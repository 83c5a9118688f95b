"""The five sentences at the top of policies/README.md, each as a property of generated sets, mails, supplies and times.
Standard: policies/README.md; small sets are tried by brute force.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from datetime import date
from functools import cache
from itertools import chain, combinations, permutations, product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from relay.errors import ConfigError, RelayError
from relay.levels import ALL_SEALING, LevelName, strength
from relay.mail import Recipient
from relay.policy.compare import compare
from relay.policy.content import MessageFacts
from relay.policy.decide import Decision, PolicySet
from relay.policy.load import load_policies
from relay.policy.settings import on_day
from relay.policy.strength import guarantee, never_weaker, parse_levels, united
from tests.testlib.long import sized
from tests.testlib.planning import Keys, planner_of
from tests.testlib.policy_files import PEERS, write
from tests.testlib.policy_reference import Ability

if TYPE_CHECKING:
    from relay.keys.ring import KeyRing

README = (Path(__file__).parents[3] / "policies" / "README.md").read_text(encoding="utf-8")
LISTS: tuple[tuple[LevelName, ...], ...] = (
    *(each for number in range(1, len(ALL_SEALING) + 1) for each in combinations(ALL_SEALING, number)),
    ("plaintext",),
)
SUPPLIES = [
    frozenset(("plaintext", *each))
    for number in range(len(ALL_SEALING) + 1)
    for each in combinations(ALL_SEALING, number)
]
TODAY, LATER = date(2026, 6, 1), date(2026, 7, 1)


def leaves(levels: Iterable[LevelName], can: Iterable[LevelName]) -> int | None:
    """The strength of what leaves, None if nothing does."""
    supply = set(can)
    return next((strength(level) for level in levels if level in supply), None)


def not_weaker(now: int | None, before: int | None, least: int) -> bool:
    return now is None or now >= (least if before is None else before)


# --- brute force over lists ------------------------------------------------------------------------------------------


def test_there_are_five_sentences() -> None:
    numbered = re.findall(r"^(\d)\. ", README.partition("## The language")[2].partition("\n| level")[0], re.MULTILINE)
    assert numbered == ["1", "2", "3", "4", "5"]
    assert len(README.split()) <= 3000


@pytest.mark.parametrize("one", LISTS[:: sized(7, 1)], ids=",".join)
def test_several_lists_are_never_weaker_than_each_whatever_can_be_had(one: tuple[LevelName, ...]) -> None:
    for other in LISTS:
        both = united((one, other))
        assert both == united((other, one))
        assert strength(guarantee(both)) == max(strength(guarantee(one)), strength(guarantee(other)))
        assert (both == one) is never_weaker(one, other)
        shown = all(not_weaker(leaves(one, can), leaves(other, can), strength(guarantee(other))) for can in SUPPLIES)
        assert never_weaker(one, other) is shown, (one, other)
        for can in SUPPLIES:
            for each in (one, other):
                assert not_weaker(leaves(both, can), leaves(each, can), strength(guarantee(each))), (one, other, can)
        assert "plaintext" not in both or one == other == ("plaintext",)


def test_no_list_falls_back_to_plaintext() -> None:
    with pytest.raises(ValueError, match='"plaintext" stands alone'):
        parse_levels(["aes", "plaintext"])
    assert all("plaintext" not in united(some) for some in product(LISTS[:-1:5], LISTS[::3]))


def test_the_least_of_all_lists_that_are_never_weaker_is_taken() -> None:
    """So what is shown of each rule alone holds of all together (relay/policy/comparing/effects.py)."""
    for one, other in product(LISTS[::5], LISTS[::3]):
        both = united((one, other))
        for upper in LISTS:
            if never_weaker(upper, one) and never_weaker(upper, other):
                assert never_weaker(upper, both), (one, other, upper)


# --- generated sets --------------------------------------------------------------------------------------------------

CONDITIONS = [
    'sender = "ann@*"',
    'sender = "*@alice.example"',
    'sender = "login:ann"',
    'not_sender = "ann@alice.example"',
    'not_sender = ["ann@alice.example", "login:ann"]',
    'subject_tag = "[a]"',
    'subject_tag = "[b]"',
    'header = "X-B"',
    'attachment_name = "c*"',
    'sender = "ann@*"\nsubject_tag = "[a]"',
]
HEADERS = st.lists(
    st.sampled_from(
        [
            b"From: ann@alice.example", b"From: Ben <ben@bob.example>", b"From: ann", b"From: [Jira] <ann@alice.example>",
            b"Subject: [a]", b"Subject: [b] x", b"Subject: =?x-none?q?y?=", b"Subject: =?utf-8?q?=5Ba=5D?=", b"X-B: 1",
            b"Content-Type: a/b; name=c", b"Content-Type: multipart/mixed", b"Content-Type: a/b; name*=x''%",
            b"no field", b"From: ann@[1.2.3.4]", b"\xff: \x00",
        ]
    ),
    max_size=4,
)  # fmt: skip
MESSAGES = st.builds(lambda header, body: b"\r\n".join([*header, b"", b"x" * body]), HEADERS, st.integers(0, 90))
LOGINS = st.sampled_from([None, "", "ann", "ann@alice.example"])
SENDERS = st.sampled_from(
    ["ann@alice.example", "ben@alice.example", "", "ann@[1.2.3.4]", "SRS0=h=d=alice.example=ann@x"]
)


@st.composite
def rules(draw: st.DrawFn, kind: str) -> list[str]:
    """Some rules or floors, each as a text."""
    found = []
    for condition in draw(st.lists(st.sampled_from(CONDITIONS), max_size=3)):
        levels = parse_levels(list(draw(st.sampled_from(LISTS[:-1]))))
        dates = draw(st.sampled_from(["", "until = 2026-06-15\n"]))
        otherwise = draw(st.sampled_from(["", 'otherwise = "refuse"\n', 'otherwise = "hold 1 h"\n']))
        found.append(f"[[{kind}]]\n{condition}\nlevels = {list(levels)}\n{dates}{otherwise}".replace("'", '"'))
    return found


@st.composite
def files(draw: st.DrawFn) -> str:
    """A file without rules."""
    levels = draw(st.sampled_from(LISTS))
    limits = draw(st.sampled_from(["", "max_size = { otp = 60 }\n", "max_size = { aes = 20, pqc = 90 }\n"]))
    priority = draw(st.sampled_from(["", 'priority = "low"\n']))
    return f"levels = {list(levels)}\n{limits}{priority}".replace("'", '"')


def loaded(
    directory: Path, file: str, each: list[str], floors: list[str], domain: str = "bob.example"
) -> PolicySet | None:
    """The set, without the rules of the file that raise nothing."""
    for number in range(2):
        texts = {f"{domain}.toml": file + "".join(each), "floors.toml": "".join(floors) or "# none\n"}
        try:
            return load_policies(write(directory / str(number), texts), PEERS)
        except ConfigError as error:
            faulty = {int(found) for found in re.findall(r"when\.(\d+)\.", " ".join(error.problems))}
            each = [text for place, text in enumerate(each) if place not in faulty]
    return None


def outcome(decision: Decision, can: Iterable[LevelName], octets: int) -> int | None:
    return leaves([each for each in decision.levels if not decision.too_big(each, octets)], can)


@pytest.mark.promise("No text in a message lowers what policy wants")
@settings(max_examples=sized(200, 5000), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    file=files(), each=rules("when"), floors=rules("floor"), message=MESSAGES, sender=SENDERS, login=LOGINS,
    can=st.sampled_from(SUPPLIES), day=st.sampled_from([TODAY, LATER]),
)  # fmt: skip
def test_a_rule_a_floor_a_doubt_or_a_hostile_message_never_lets_a_mail_leave_weaker(
    tmp_path_factory: pytest.TempPathFactory, file: str, each: list[str], floors: list[str], message: bytes,
    sender: str, login: str | None, can: frozenset[LevelName], day: date,
) -> None:  # fmt: skip
    top = tmp_path_factory.mktemp("p")
    policies, bare = loaded(top / "a", file, each, floors), loaded(top / "b", file, [], [])
    without = loaded(top / "c", file, each[:-1], floors[:-1])
    if policies is None or bare is None or without is None:
        return
    octets = MessageFacts(message).size
    with on_day(day):
        decisions = [
            one.decide(sender, "x@bob.example", MessageFacts(message, login)) for one in (policies, without, bare)
        ]
        of_envelope = policies.decide(sender, "x@bob.example")
    for weaker in (*decisions[1:], of_envelope):
        least = strength(guarantee(weaker.levels))
        assert strength(guarantee(decisions[0].levels)) >= least
        assert not_weaker(outcome(decisions[0], can, octets), outcome(weaker, can, octets), least)
        assert decisions[0].hold_for <= weaker.hold_for
    if not bare.decide(sender, "x@bob.example").in_clear:
        assert all("plaintext" not in one.levels for one in decisions)


@settings(max_examples=sized(60, 2000), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(file=files(), each=rules("when"), floors=rules("floor"), message=MESSAGES, sender=SENDERS, login=LOGINS)
def test_the_order_of_rules_and_lists_means_nothing(
    tmp_path_factory: pytest.TempPathFactory, file: str, each: list[str], floors: list[str], message: bytes,
    sender: str, login: str | None,
) -> None:  # fmt: skip
    top, seen = tmp_path_factory.mktemp("p"), set()
    for number, (some, others) in enumerate(product(permutations(each), permutations(floors))):
        turned = re.sub(r"levels = \[(.*)\]", lambda found: f"levels = [{', '.join(found[1].split(', ')[::-1])}]", file)
        policies = loaded(top / str(number), turned if number % 2 else file, list(some), list(others))
        if policies is None or number > 5:
            break
        decision = policies.decide(sender, "x@bob.example", MessageFacts(message, login))
        seen.add((decision.levels, decision.otherwise, decision.priority, decision.max_size))
    assert len(seen) <= 1


@settings(max_examples=sized(100, 2000), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    file=files(), each=rules("when"), floors=rules("floor"), message=st.none() | MESSAGES, sender=SENDERS, login=LOGINS
)
def test_decide_and_explain_never_differ(
    tmp_path_factory: pytest.TempPathFactory, file: str, each: list[str], floors: list[str], message: bytes | None,
    sender: str, login: str | None,
) -> None:  # fmt: skip
    policies = loaded(tmp_path_factory.mktemp("p"), file, each, floors)
    if policies is None:
        return
    content = None if message is None else MessageFacts(message, login)
    assert policies.explain(sender, "x@bob.example", content).decision == policies.decide(
        sender, "x@bob.example", content
    )


@settings(max_examples=sized(60, 1000), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(file=files(), floors=rules("floor"), message=MESSAGES, sender=SENDERS)
def test_what_cannot_be_read_beyond_doubt_fits_every_text(
    tmp_path_factory: pytest.TempPathFactory, file: str, floors: list[str], message: bytes, sender: str
) -> None:
    """A mail in which everything is in doubt gets no less than any other."""
    policies = loaded(tmp_path_factory.mktemp("p"), file, [], floors)
    assert policies is not None
    doubtful = MessageFacts(b"no field\r\n" + message, None)
    some = policies.decide(sender, "x@bob.example", MessageFacts(message, ""))
    try:
        every = policies.decide("ann%x@[1.2.3.4]", "x@bob.example", doubtful)
    except RelayError:
        return
    assert never_weaker(every.levels, some.levels)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_each_condition_fits_a_mail_of_which_nothing_can_be_read(tmp_path: Path, condition: str) -> None:
    policies = loaded(tmp_path, 'levels = ["rsa"]\n', [], [f'[[floor]]\n{condition}\nlevels = ["otp"]\n'])
    assert policies is not None
    decision = policies.decide("ann%x@[1.2.3.4]", "x@bob.example", MessageFacts(b"no field\r\nX: y\r\n\r\n"))
    assert (decision.levels, decision.doubt is not None) == (("otp",), True)


# --- mail that can have no level -------------------------------------------------------------------------------------

LAYERS = ("otp", "aes", "pqc", "rsa", "smime")


@st.composite
def abilities(draw: st.DrawFn) -> Ability:
    """What relay, peer and KMEs can do for bob at present."""
    cannot = draw(st.sets(st.sampled_from(LAYERS)))
    keys = {("bob", use): draw(st.sampled_from(["all", "normal", "none"])) for use in ("otp", "aes")}
    no_kme = frozenset(["bob"] if draw(st.integers(0, 5)) == 0 else [])
    return Ability(frozenset((layer, "bob") for layer in cannot), no_kme, keys)


def can_be_had(level: LevelName, decision: Decision, can: Ability, octets: int) -> bool:
    """Whether a level of the list can be had now."""
    if level == "plaintext":
        return True
    layers = level.split("+")
    if octets > dict(decision.max_size).get(level, octets) or (decision.peer is None and level != "smime"):
        return False
    if any((layer, "bob") in can.cannot for layer in layers):
        return False
    if layers[-1] not in ("otp", "aes"):
        return True
    enough = ("all",) if decision.priority == "low" else ("all", "normal")
    return not can.no_kme and can.keys["bob", layers[-1]] in enough


@settings(max_examples=sized(300, 3000), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    file=files(), each=rules("when"), floors=rules("floor"), message=MESSAGES, can=abilities(), can_later=abilities(),
    sender=st.sampled_from(["ann@alice.example", "ben@alice.example", ""]), waited=st.sampled_from([None, 10.0, 7200.0, 7200.0]),
    domain=st.sampled_from([*["bob.example"] * 4, "peerless.example"]),
    patience=st.sampled_from(["", 'otherwise = "refuse"\n', 'otherwise = "hold 1 h"\n']),
)  # fmt: skip
def test_mail_that_can_have_no_level_of_its_list_never_leaves_but_is_held_or_refused_with_the_reason(
    tmp_path_factory: pytest.TempPathFactory, file: str, each: list[str], floors: list[str], message: bytes,
    can: Ability, can_later: Ability, sender: str, waited: float | None, domain: str,
    patience: str,
) -> None:  # fmt: skip
    top = tmp_path_factory.mktemp("p")
    policies = loaded(top / "a", file + patience, each, floors, domain)
    if policies is None:
        return
    to = Recipient(f"x@{domain}")
    decision = policies.decide(sender, to.address, MessageFacts(message, ""))
    octets = MessageFacts(message).size
    for ability in (can, can_later):  # keys that come later help what is held, and nothing else
        planner = planner_of(ability, top / "alice", compression=False)
        keys = cast("KeyRing", Keys(ability.keys))
        [group] = asyncio.run(planner.foresee([(to, decision)], octets, waited, keys))
        best = next((level for level in decision.levels if can_be_had(level, decision, ability, octets)), None)
        assert group.protection == (best or "")
        if best is not None:
            assert group.result == ("clear" if best == "plaintext" else "sealed")
            continue
        possible = [level for level in decision.levels if decision.peer is not None or level == "smime"]
        never = all(octets > dict(decision.max_size).get(level, octets) for level in possible)
        too_late = decision.hold_for == 0 or (waited is not None and waited >= decision.hold_for)
        assert group.result == ("refused" if never or too_late else "held")
        reason = str(group.error)
        assert all(f"{level}: " in reason for level in decision.levels), reason
        assert group.error is not None
        assert group.error.reply.startswith("5" if never or too_late else "4")


# --- brute force over small sets -------------------------------------------------------------------------------------

SMALL_LISTS: tuple[tuple[LevelName, ...], ...] = (
    ("plaintext",), ("otp",), ("otp", "aes"), ("aes", "pqc"), ("pqc+aes",), ("pqc", "rsa"),
)  # fmt: skip
SMALL_CONDITIONS = (
    'subject_tag = "[a]"', 'subject_tag = ["[a]", "[b]"]', 'sender = "ann@*"', 'not_sender = "ann@alice.example"',
)  # fmt: skip
SMALL_MAILS = [
    (sender, MessageFacts(b"From: %b\r\nSubject: %b\r\n\r\n" % (sender.encode(), subject), login))
    for sender in ("ann@alice.example", "ben@alice.example")
    for subject in (b"", b"[a]", b"[b]", b"[a] [b]", b"=?x-none?q?y?=")
    for login in ("", None)
]


class Small(NamedTuple):
    """A set of one file and two rules at most."""

    levels: tuple[LevelName, ...]
    rules: frozenset[str]

    @property
    def fewer(self) -> list[Small]:
        """The same without one of its rules."""
        return [Small(self.levels, self.rules - {each}) for each in self.rules]


def small_sets(directory: Path, number: int) -> dict[Small, PolicySet]:
    """All sets with so many rules at most, but those with rules that raise nothing."""
    found: dict[Small, PolicySet] = {}
    every = [
        f"[[{kind}]]\n{condition}\nlevels = {list(levels)}\n".replace("'", '"')
        for kind, condition, levels in product(("when", "floor"), SMALL_CONDITIONS, SMALL_LISTS[1:])
    ]
    for levels in SMALL_LISTS:
        for rules_of in chain.from_iterable(combinations(every, count) for count in range(number + 1)):
            floors, own = ([each for each in rules_of if kind in each] for kind in ("[[floor]]", "[[when]]"))
            texts = {
                "bob.example.toml": f"levels = {list(levels)}\n".replace("'", '"') + "".join(own),
                "floors.toml": "".join(floors) or "# none\n",
            }
            shutil.rmtree(directory, ignore_errors=True)
            with suppress(ConfigError):
                found[Small(levels, frozenset(rules_of))] = load_policies(write(directory, texts), PEERS)
    return found


def lists_of(policies: PolicySet) -> list[tuple[LevelName, ...]]:
    """The levels for each of the small mails."""
    return [policies.decide(sender, "x@bob.example", facts).levels for sender, facts in SMALL_MAILS]


@cache
def leaves_weaker(now: tuple[LevelName, ...], before: tuple[LevelName, ...]) -> bool:
    """Whether by some supply mail leaves weaker by one list than by the other."""
    least = strength(guarantee(before))
    return not all(not_weaker(leaves(now, can), leaves(before, can), least) for can in SUPPLIES)


def test_no_small_set_lets_a_mail_leave_weaker_with_a_rule_than_without(tmp_path: Path) -> None:
    found = {small: lists_of(each) for small, each in small_sets(tmp_path / "p", sized(1, 2)).items()}
    pairs = [(found[small], found[less]) for small in found for less in small.fewer if less in found]
    assert len(pairs) > 100
    for after, before in pairs:
        assert not any(leaves_weaker(*each) for each in zip(after, before, strict=True))


def test_no_small_set_lets_a_mail_leave_weaker_after_a_strict_edit_than_before(tmp_path: Path) -> None:
    found = [(each, lists_of(each)) for each in small_sets(tmp_path / "p", 1).values()]
    passed = refused = 0
    for (old, before), (new, after) in product(found[:: sized(9, 1)], found[:: sized(5, 1)]):
        weaker = any(leaves_weaker(*each) for each in zip(after, before, strict=True))
        proven = compare(old, new).proven
        assert not (proven and weaker), (old.files, old.floors, new.files, new.floors)
        passed += proven
        refused += not proven
    assert passed
    assert refused
