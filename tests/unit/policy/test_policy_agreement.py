"""Generated policies, mails and key supplies: reference, decision, explanation, plan, simulation, shadow, ledger, log
and what leaves say the same. The reference is written from policies/README.md alone (testlib/policy_reference.py).

The long form tries 900 sets, 30,000 decisions, others each time, and counts.
"""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import LogCapture

from relay.audit.entries import LedgerEntry
from relay.audit.writing import Audit
from relay.cli.policy_site import PolicySite
from relay.errors import ConfigError, PolicyHolds, PolicyRefuses, RelayError, TryLater
from relay.formats import mime
from relay.journey.delivery import Delivery
from relay.journey.plan import Outcome, Planned
from relay.journey.planner import Planner
from relay.journey.sealing import SealedCopy, Sealer
from relay.journey.shadow import Shadow
from relay.journey.tripwire import check_sealed
from relay.keys.ring import KeyRing
from relay.mail import Envelope, Mail, Origin, Recipient
from relay.outgoing import Outgoing
from relay.policy.content import MessageFacts
from relay.policy.decide import PolicySet
from relay.policy.expected import becomes
from relay.policy.load import load_policies
from relay.policy.site import SiteFacts
from relay.policy.traffic import TrafficSample
from tests.testlib.address_reference import sender_of
from tests.testlib.long import sized
from tests.testlib.planning import Keys, planner_of
from tests.testlib.policy_files import write
from tests.testlib.policy_made import OWN, OWNERS, PEERS, Made, MadePolicies, message_of
from tests.testlib.policy_reference import Ability, Facts, Reference, Said

SETS = sized(0, 900)
MAILS_EACH = 20 if SETS else 4
"""Each for one to four recipients."""


def loaded(made: Made, directory: Path) -> tuple[MadePolicies, PolicySet]:
    """Texts by name, and the set that the relay makes of them; what it does not take is made again."""
    policies = made.policies()
    site = SiteFacts(policies.site.domains, policies.site.tag_separators, takes_from=policies.site.takes_from)
    faulty = list(policies.scopes)
    shutil.rmtree(directory, ignore_errors=True)
    while faulty:
        again = made.again(policies, faulty)
        write(directory, again)
        try:
            return policies, load_policies(directory, PEERS, site=site)
        except ConfigError as error:
            faulty = [
                name for name in policies.scopes if any(f"{directory}/{name}:" in each for each in error.problems)
            ]
            assert faulty, error.problems
    raise AssertionError("a set without files")


# --- what is compared ----------------------------------------------------------------------------------------------


def check_decisions(policies: PolicySet, facts: Facts, message: bytes, said: Mapping[str, Said]) -> None:
    """Decision and explanation are what the documents say."""
    content = MessageFacts(message, facts.login)
    octets = facts.octets - facts.hidden
    for recipient, expected in said.items():
        explanation = policies.explain(facts.sender, recipient, content)
        if expected.file is None:
            with pytest.raises(PolicyHolds):
                policies.decide(facts.sender, recipient, content)
            assert explanation.decision is None
            continue
        decision = policies.decide(facts.sender, recipient, content)
        assert explanation.decision == decision
        got: tuple[object, ...] = (
            tuple(level for level in decision.levels if not decision.too_big(level, octets)),
            decision.hold_for, decision.priority, decision.peer,
        )  # fmt: skip
        want = expected.settings
        assert got == (expected.tried, want.patience, want.priority, expected.peer), recipient
        if may_leave(facts):
            levels = tuple(level for level in decision.possible if not decision.too_big(level, octets))
            assert levels == expected.possible
            assert becomes(policies, facts.sender, recipient, content)[0] == (expected.tried if levels else "refused")
        if expected.tried and expected.source:
            assert decision.source == f"{policies.directory}/{expected.source}"


def may_leave(facts: Facts) -> bool:
    """Whether its sender is an address: nothing is sealed for others, whatever policies say."""
    return not facts.sender or sender_of(facts.sender) is not None


def is_inside(address: str) -> bool:
    return address.rpartition("@")[2].lower() in OWN


def became(outcomes: Sequence[Outcome]) -> dict[str, str]:
    words = {"clear": "in clear", "held": "held", "refused": "refused"}
    return {each.recipient: words.get(each.result, each.protection) for each in outcomes}


@dataclass
class OneTry:
    """In place of a Delivery: the first try of a mail."""

    rest: Mail
    name: bytes = b"x"
    copies: list[SealedCopy] = field(default_factory=list)
    outcomes: dict[str, RelayError] = field(default_factory=dict)
    without: dict[str, Planned] = field(default_factory=dict)

    @property
    def mail(self) -> Mail:
        return self.rest

    def step(self, name: str) -> None:
        """Nobody takes the time."""

    def note_for_all(self, recipients: Iterable[Recipient], error: RelayError) -> None:
        self.outcomes |= {each.address: error for each in recipients}


class Lines:
    """In place of the ledger."""

    def __init__(self) -> None:
        self.entries: list[LedgerEntry] = []

    async def record(self, *entries: LedgerEntry) -> None:
        self.entries += entries


async def check_all(planner: Planner, policies: PolicySet, facts: Facts, reference: Reference, can: Ability) -> None:
    """Everything that foresees is what the documents say."""
    message = message_of(facts)
    said = {recipient: reference.said(facts, recipient) for recipient in facts.recipients}
    check_decisions(policies, facts, message, said)
    if not may_leave(facts):
        return
    site = PolicySite(planner.config, {}, policies)
    sample = TrafficSample("x", facts.sender, facts.recipients, facts.octets, MessageFacts(message, facts.login))
    simulated = await site.foresee(planner, sample, facts.recipients)
    everything = replace(can, keys={})
    assert became(simulated) == {who: each.outcome(facts, everything) for who, each in said.items()}
    explained = await site.foresee(planner, sample, facts.recipients, cast("KeyRing", Keys(can.keys)))
    assert became(explained) == {who: each.outcome(facts, can) for who, each in said.items()}


async def check_mail(
    planner: Planner, policies: PolicySet, facts: Facts, reference: Reference, can: Ability, log: LogCapture
) -> None:
    """And so are shadow mode, what is sealed, the ledger and the log."""
    said = {recipient: reference.said(facts, recipient) for recipient in facts.recipients}
    now = {who: each.outcome(facts, can) for who, each in said.items()}
    origin = Origin(user=facts.login or "", asks_user=facts.login is not None)
    mail = Mail(Envelope(facts.sender, tuple(map(Recipient, facts.recipients))), message_of(facts), origin=origin)
    sealer = Sealer(lambda: planner, lambda: policies, cast("KeyRing", Keys(can.keys)))

    log.entries.clear()
    in_shadow = [(who, each) for each in (await Shadow(sealer).foresee(mail))[0] for who in each.recipients]
    clear = {who for who, word in now.items() if word == "in clear"}
    assert sorted(who for who, _ in in_shadow) == sorted(who for who in now if who not in clear or not is_inside(who))
    for who, entry in in_shadow:
        assert (entry.event == "plaintext") == (now[who] == "in clear")
        assert now[who] == "in clear" or entry.reason.endswith(f" {now[who]}")
    words = [each["protection"] if each["result"] == "sealed" else each["result"] for each in log.entries]
    assert sorted(words) == sorted("clear" if word == "in clear" else word for word in now.values())
    foreseen = sum(each["quantum_bits"] for each in log.entries)

    plan = await sealer.foresee(mail)
    # Only who falls back to a copy that is made already gets one of their own.
    at_once = [group.copy for group in plan if group.copy and not all(each.causes for each in group.members)]
    assert len(at_once) == len(set(at_once))

    log.entries.clear()
    ledger, one_try = Lines(), OneTry(mail)
    alone = cast("Any", SimpleNamespace(alone=True))
    outgoing = Outgoing(cast("Any", None), sealer, cast("Any", None), cast("Audit", ledger), alone)
    await outgoing._add_copies(cast("Delivery", one_try))
    left = {each.address: copy.protection for copy in one_try.copies for each in copy.recipients}
    stayed = {who: "held" if isinstance(error, TryLater) else "refused" for who, error in one_try.outcomes.items()}
    assert {who: "in clear" if word == "plaintext" else word for who, word in (left | stayed).items()} == now
    assert [(copy.peer, copy.protection, copy.recipients, copy.planned) for copy in one_try.copies] == [
        (group.copy.peer, group.protection, group.recipients, group.members) for group in plan if group.copy
    ]
    spent = sum(copy.quantum_bits for copy in one_try.copies)
    # Compressed, the random id in the sealed envelope makes it a few octets longer or shorter, and padding a step of it.
    assert abs(spent - foreseen) <= (foreseen / 8 + 512 if planner.config.otp.compression else 0)
    for copy in one_try.copies:
        assert (copy.message == mime.without_hidden_fields(mail.message)) == copy.in_clear
        if copy.protection.rpartition("+")[2] in ("otp", "aes"):
            check_sealed(copy.message, copy.protection)
    less = {who: entry.event for entry in ledger.entries for who in entry.recipients}
    in_clear = {who: "plaintext" for who in clear if not is_inside(who)}
    # Where sizes have changed which level is the first, the document leaves open from which one a mail has come down.
    weaker = {who for who in left if now[who] not in ("in clear", *said[who].best())}
    perhaps = {who for who in left if now[who] != "in clear" and {now[who]} != said[who].best()}
    assert in_clear | dict.fromkeys(weaker, "downgrade") == {
        who: event for who, event in less.items() if who not in perhaps - weaker
    }
    assert {less.get(who, "downgrade") for who in perhaps} <= {"downgrade"}
    assert {
        who: each for entry in ledger.entries for who, each in [(who, entry.level) for who in entry.recipients]
    } == {who: left[who] for who in less}
    events = [each for each in log.entries if each["event"] == "downgraded"]
    assert len(events) == sum(entry.event == "downgrade" for entry in ledger.entries)
    held = {each["cause"] for each in log.entries if each["event"] == "not_sealed"}
    assert held == set(map(str, one_try.outcomes.values()))
    assert {each.get("policy_version") for each in log.entries if each["event"] == "not_sealed"} <= {policies.version}
    check_rcpt(sealer, facts, one_try)


def check_rcpt(sealer: Sealer, facts: Facts, one_try: OneTry) -> None:
    """What RCPT hears is final: where it is refused or held at once, the message is too."""
    for recipient in facts.recipients:
        try:
            sealer.check(facts.sender, recipient)
        except (PolicyHolds, PolicyRefuses) as error:
            assert one_try.outcomes[recipient].code == error.code


@pytest.mark.promise("No text in a message lowers what policy wants")
@pytest.mark.parametrize("part", range(4))
async def test_all_that_decides_foresees_seals_and_tells_is_what_the_documents_say(
    tmp_path: Path, log: LogCapture, part: int
) -> None:
    decisions = mails = 0
    seed = random.randrange(2**32) if SETS else part
    made = Made(seed)
    for number in range((SETS or 60) // 4):
        texts, policies = loaded(made, tmp_path / "policies")
        reference = Reference(texts.files, OWNERS, texts.site)
        for each in range(MAILS_EACH):
            facts, can = made.facts(), made.ability()
            planner = planner_of(can, tmp_path / "alice", compression=made.random() < 0.3)
            try:
                await check_all(planner, policies, facts, reference, can)
                if each == 0 and may_leave(facts):
                    await check_mail(planner, policies, facts, reference, can, log)
                    mails += 1
                decisions += len(facts.recipients)
            except Exception as error:
                case = "\n".join(
                    map(str, [facts, can, texts.site, *(f"--- {name}\n{text}" for name, text in texts.files.items())])
                )
                raise AssertionError(f"seed {seed}, set {number}: {error}\n{case}") from error
    sys.stderr.write(f"seed {seed}: {decisions} decisions, {mails} mails sealed, all agree\n")
