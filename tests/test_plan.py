"""What a mail's plan says, beside a short reference, and that sealing does it and everything else says the same.
Standard: policies/README.md, from which the reference was written; generated policies, mails and key supplies.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import LogCapture

from relay.config import Address, Config, load_config
from relay.errors import KeyUnavailable, PolicyHolds, PolicyRefuses
from relay.keys import Key, KeyReference
from relay.keys.pads import Pad, pad_of, plan_pad
from relay.keys.refill import Supply
from relay.keys.types import SealingKey
from relay.levels import Level, Parties, SealedPayload
from relay.levels.aes import AES
from relay.levels.otp import OneTimePad
from relay.mail import Envelope, Mail, Recipient
from relay.plan import Group
from relay.planner import Planner
from relay.policy import Decision, PolicySet
from relay.sealing import Sealer
from tests.test_refusals import log as log  # a fixture
from tests.testlib.sites import make_site

SENDER = "ann@alice.example"
GROUP = "alice-bob"
LIMIT, SMALL, LARGE = 1000, 300, 3000
HOLD_FOR = 3600.0

CASES = int(os.environ.get("QUMAIL_PLAN_CASES", "0"))
"""For the long random mode: so many cases, others each time."""

Supplies = Mapping[tuple[str, str], str]
"""For each peer and each of `otp` and `aes` whether there is key: "all", "normal" (the rest is reserved), "none"."""


@dataclass(frozen=True)
class Case:
    """A mail of `octets` that has waited for `waited` seconds, what policy says, and what relay and KMEs can do."""

    decisions: tuple[Decision, ...]
    octets: int
    waited: int
    cannot: frozenset[tuple[str, str]]
    no_kme: frozenset[str]
    supplies: Supplies

    def mail(self) -> Mail:
        received = f"Received: from a by b; {format_datetime(datetime.now(UTC) - timedelta(seconds=self.waited))}\r\n"
        message = f"{received}Subject: x\r\n\r\n".encode()
        recipients = tuple(Recipient(each.recipient) for each in self.decisions)
        return Mail(Envelope(SENDER, recipients), message + b"x" * (self.octets - len(message) - 2) + b"\r\n")


PEERS = ("bob", "carol")
_levels = st.permutations(["otp", "aes", "pqc", "rsa"]).flatmap(
    lambda all_: st.integers(1, 4).map(lambda n: tuple(all_[:n]))
)
_decisions = st.builds(
    Decision,
    sender=st.just(SENDER),
    recipient=st.just(""),
    levels=st.one_of(_levels, _levels, _levels, st.just(("plaintext",))),
    peer=st.sampled_from(["bob", "bob", "bob", "carol", None]),
    quantum=st.sampled_from(["off", "preferred", "required"]),
    otherwise=st.sampled_from(["hold", "refuse"]),
    source=st.sampled_from(["one.toml", "two.toml"]),
    line=st.just(1),
    version=st.just("0" * 12),
    kem=st.sampled_from([("ml-kem-1024",), ("ml-kem-1024",), ("ml-kem-1024", "hqc-256")]),
    max_size=st.sampled_from([(), (), (("otp", LIMIT),), (("otp", LIMIT), ("pqc", LIMIT))]),
    hold_for=st.sampled_from([None, HOLD_FOR]),
    priority=st.sampled_from(["normal", "normal", "low"]),
    max_bounce=st.sampled_from([None, None, LIMIT]),
)
cases = st.builds(
    Case,
    decisions=st.lists(_decisions, min_size=1, max_size=5).map(
        lambda found: tuple(replace(each, recipient=f"r{number}@x.example") for number, each in enumerate(found))
    ),
    octets=st.sampled_from([SMALL, SMALL, LARGE]),
    waited=st.sampled_from([10, 7200]),
    cannot=st.frozensets(
        st.tuples(st.sampled_from(["otp", "pqc", "rsa", "hqc-256"]), st.sampled_from(PEERS)), max_size=4
    ),
    no_kme=st.frozensets(st.sampled_from(PEERS), max_size=1),
    supplies=st.fixed_dictionaries(
        {(peer, use): st.sampled_from(["all", "all", "normal", "none"]) for peer in PEERS for use in ("otp", "aes")}
    ),
)


# --- the site: real configuration, levels otp and aes; what policy says and what keys there are is made up ----------


@cache
def config(directory: Path) -> Config:
    """Alice's, with two peers."""
    site = make_site(directory, "alice", state=directory, kme_url="https://[::1]:1", outgoing=Address("::1", 1))
    found = load_config(site.config_file)
    bob = found.peers["bob"]
    return found.model_copy(update={"peers": {"bob": bob, "carol": bob.model_copy(update={"sae_id": "sae-carol"})}})


class Signed:
    """In place of the levels that need certificates."""

    quantum = False

    def __init__(self, name: str) -> None:
        self.name = name

    def obstacle(self, parties: Parties) -> str:
        return ""

    async def seal(self, payload: bytes, parties: Parties, keys: object) -> SealedPayload:
        return SealedPayload(b"0" + payload)


def levels_of(case: Case) -> dict[str, Level]:
    levels = cast(
        "dict[str, Level]", {"otp": OneTimePad(), "aes": AES()} | {n: Signed(n) for n in ("pqc", "rsa", "hqc-256")}
    )
    for name, level in levels.items():
        cannot = {peer for which, peer in case.cannot if which == name}
        level.obstacle = lambda parties, cannot=cannot: "cannot" if parties.peer in cannot else ""  # type: ignore[method-assign,misc]
    return levels


def planner_of(case: Case, directory: Path) -> Planner:
    base = config(directory)
    peers = {
        name: peer.model_copy(update={"kme_groups": () if name in case.no_kme else (GROUP,)})
        for name, peer in base.peers.items()
    }
    return Planner(base.model_copy(update={"peers": peers}), levels_of(case))


class Keys:
    """KeyRing's part: gives keys, or says whether it could, as a case says."""

    def __init__(self, supplies: Supplies) -> None:
        self._supplies = supplies
        self.taken = 0

    def _check(self, peer: str, use: str, low: bool) -> None:
        supply = self._supplies[peer, use]
        if supply == "none" or (supply == "normal" and low):
            raise KeyUnavailable(f"no key ({supply})")

    def _keys(self, number: int) -> list[Key]:
        self.taken += number
        return [Key(f"{self.taken:06}-{count:06}", bytes(32)) for count in range(number)]

    async def take(self, peer: str, *, level: str = "aes", octets: int = 0, low_priority: bool = False) -> SealingKey:
        self._check(peer, "aes", low_priority)
        [key] = self._keys(1)
        return SealingKey(key, KeyReference(key.key_ID, "alice", peer, GROUP))

    async def take_pad(self, peer: str, hidden: int, *, level: str = "otp", low_priority: bool = False) -> Pad:
        self._check(peer, "otp", low_priority)
        keys = self._keys(plan_pad(hidden, None).number)
        return pad_of(keys, [KeyReference(key.key_ID, "alice", peer, GROUP) for key in keys], hidden)[0]

    async def can_supply(self, peer: str, hidden: int, *, low_priority: bool = False) -> Supply:
        try:
            self._check(peer, "otp" if hidden else "aes", low_priority)
        except KeyUnavailable as error:
            return Supply(False, None, str(error))
        return Supply(True, 0.0, "", plan_pad(hidden, None).octets if hidden else 32)


def sealer_of(case: Case, directory: Path) -> Sealer:
    by_recipient = {each.recipient: each for each in case.decisions}

    def decide(sender: str, recipient: str, content: object = None) -> Decision:
        return by_recipient[recipient]

    policies = SimpleNamespace(decide=decide, looks_inside=False, patterns=0, version="0" * 12)
    return Sealer(planner_of(case, directory), lambda: cast("PolicySet", policies), Keys(case.supplies))


# --- the reference ------------------------------------------------------------------------------------------------


def expected(case: Case, decision: Decision, supplies: Supplies) -> str:
    """What the documents say of one recipient: the layers, "in clear", "held" or "refused"."""
    for level in decision.levels:
        if level == "plaintext":
            return "in clear"
        too_large = any(name == level and case.octets > limit for name, limit in decision.max_size)
        too_large |= level == "otp" and decision.max_bounce is not None and case.octets > decision.max_bounce
        layers = (level, *decision.kem[1:]) if level == "pqc" else (level,)
        peer = decision.peer
        if too_large or peer is None or any((layer, peer) in case.cannot for layer in layers):
            continue
        enough = ("all", "normal") if decision.priority == "normal" else ("all",)
        key = {use: peer not in case.no_kme and supplies[peer, use] in enough for use in ("otp", "aes")}
        if level in key:
            if key[level]:
                return level
        elif decision.quantum != "off" and key["aes"]:
            return "+".join((*layers, "aes"))
        elif decision.quantum != "required":
            return "+".join(layers)
    late = decision.hold_for is not None and case.waited >= decision.hold_for
    return "refused" if decision.otherwise == "refuse" or late else "held"


def said(groups: Sequence[Group]) -> dict[str, str]:
    """The same of every recipient in a plan."""
    words = {"sealed": "", "clear": "in clear", "held": "held", "refused": "refused"}
    return {each.address: words[group.result] or group.protection for group in groups for each in group.recipients}


ALL_THERE = {(peer, use): "all" for peer in PEERS for use in ("otp", "aes")}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("site") / "alice"


@settings(
    max_examples=CASES or 250, derandomize=not CASES, deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(case=cases)
def test_plan_sealing_and_what_is_foreseen_are_what_the_documents_say(
    directory: Path, log: LogCapture, case: Case
) -> None:
    asyncio.run(check(directory, case))


async def check(directory: Path, case: Case) -> None:
    sealer = sealer_of(case, directory)
    mail = case.mail()
    decided = [(Recipient(each.recipient), each) for each in case.decisions]

    # As if all keys were there, as `policy simulate` says it: every recipient once, and no two copies alike.
    plan = await sealer.planner.foresee(decided, case.octets, case.waited)
    assert said(plan) == {each.recipient: expected(case, each, ALL_THERE) for each in case.decisions}
    copies = [group.copy for group in plan if group.copy]
    assert len(copies) == len(set(copies))

    # With the keys that there are: what is foreseen, and what sealing does.
    foreseen = await sealer.foresee(mail)
    assert said(foreseen) == {each.recipient: expected(case, each, case.supplies) for each in case.decisions}
    sealed = await sealer.seal(mail)
    assert [
        (each.peer, each.protection, each.recipients, each.quantum_bits, each.planned) for each in sealed.copies
    ] == [
        (each.copy.peer, each.protection, each.recipients, each.quantum_bits, each.members)
        for each in foreseen
        if each.copy
    ]
    failures = {each.address: repr(group.error) for group in foreseen if group.error for each in group.recipients}
    assert {address: repr(error) for address, error in sealed.failures.items()} == failures

    # Of each: who gets less than the first protection listed is noted for the ledger, with every one passed over.
    unhindered = replace(case, octets=SMALL, cannot=frozenset(), no_kme=frozenset())
    for group in foreseen:
        for each in group.members:
            best = expected(unhindered, cast("Decision", each.decision), ALL_THERE)
            if group.result == "sealed":
                assert (group.protection == best) == (not each.downgrade)
            assert group.result != "clear" or each.downgrade

    # What RCPT hears is final: where it is refused or held at once, the message is too.
    for decision in case.decisions:
        try:
            sealer.check(SENDER, decision.recipient)
        except (PolicyHolds, PolicyRefuses) as error:
            assert sealed.failures[decision.recipient].code == error.code


# --- who shares a copy ----------------------------------------------------------------------------------------------

AT_BOB = Decision(SENDER, "", ("aes",), "bob", "preferred", "hold", "one.toml", 1, "0" * 12)


def case_of(*decisions: Decision, supplies: Supplies = ALL_THERE) -> Case:
    numbered = tuple(replace(each, recipient=f"r{number}@x.example") for number, each in enumerate(decisions))
    return Case(numbered, SMALL, 10, frozenset(), frozenset(), supplies)


def two(**settings: tuple[Any, Any]) -> tuple[Decision, Decision]:
    """Two decisions that differ in these settings."""
    return cast(
        "tuple[Decision, Decision]",
        tuple(replace(AT_BOB, **{name: values[which] for name, values in settings.items()}) for which in (0, 1)),
    )


@pytest.mark.parametrize(
    ("decisions", "copies"),
    [
        (two(levels=(("otp",), ("otp",)), quantum=("off", "required")), ["otp"]),
        (two(quantum=("off", "preferred")), ["aes"]),
        (two(levels=(("pqc",), ("pqc",)), quantum=("required", "preferred")), ["pqc+aes"]),
        (two(levels=(("rsa",), ("rsa",)), quantum=("off", "off"), priority=("low", "normal")), ["rsa"]),
        (two(levels=(("plaintext",), ("plaintext",)), peer=("bob", None), priority=("low", "normal")), ["plaintext"]),
        (two(priority=("low", "normal")), ["aes", "aes"]),
        (two(levels=(("rsa",), ("rsa",)), quantum=("off", "preferred")), ["rsa+aes", "rsa"]),
        (two(peer=("bob", "carol")), ["aes", "aes"]),
    ],
)
async def test_recipients_share_a_copy_unless_what_differs_means_something_there(
    directory: Path, decisions: tuple[Decision, Decision], copies: list[str]
) -> None:
    case = case_of(*decisions)
    sealed = await sealer_of(case, directory).seal(case.mail())
    assert [each.protection for each in sealed.copies] == copies


@pytest.mark.parametrize(
    ("first", "second", "key"),
    [
        (replace(AT_BOB, levels=("otp", "aes")), AT_BOB, ("bob", "otp")),
        (replace(AT_BOB, levels=("rsa",)), replace(AT_BOB, levels=("rsa",), quantum="off"), ("bob", "aes")),
    ],
)
async def test_who_falls_back_shares_the_copy_of_those_who_wanted_it_from_the_first(
    directory: Path, first: Decision, second: Decision, key: tuple[str, str]
) -> None:
    case = case_of(second, first, supplies=ALL_THERE | {key: "none"})
    sealed = await sealer_of(case, directory).seal(case.mail())
    [copy] = sealed.copies
    assert sorted(bool(each.downgrade) for each in copy.planned) == [False, True]
