"""Generated policies, mails and key supplies: reference, decision, explanation, plan, simulation, shadow, ledger, log
and what leaves say the same. The reference is written from policies/README.md alone (testlib/policy_reference.py).

QUMAIL_PLAN_CASES=4000 pytest -s tests/unit/policy/test_policy_agreement.py tries so many sets, others each time, and counts.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import LogCapture

from relay import mime
from relay.audit.entries import LedgerEntry
from relay.audit.writing import Audit
from relay.cli.policy_site import PolicySite
from relay.deliveries import Delivery
from relay.errors import ConfigError, PolicyHolds, PolicyRefuses, RelayError, TryLater
from relay.keys.ring import KeyRing
from relay.mail import Envelope, Mail, Recipient
from relay.outgoing import Outgoing
from relay.plan import Outcome, Planned
from relay.planner import Planner
from relay.policy.content import MessageFacts
from relay.policy.decide import PolicySet
from relay.policy.load import load_policies
from relay.policy.traffic import Sample
from relay.sealing import SealedCopy, Sealer
from relay.shadow import Shadow
from relay.tripwire import check_sealed
from tests.integration.test_refusals import log as log  # a fixture
from tests.testlib.planning import Keys, planner_of
from tests.testlib.policy_reference import Ability, Facts, Reference, Said
from tests.unit.policy.test_policy import write

SETS = int(os.environ.get("QUMAIL_PLAN_CASES", "0"))
MAILS_EACH = 20 if SETS else 4
"""Each for one to four recipients."""

PEERS = {"bob": ["bob.example", "lab.bob.example"], "carol": ["carol.example"]}
OWNERS = {domain: peer for peer, domains in PEERS.items() for domain in domains}
DOMAINS = [
    "bob.example",
    "lab.bob.example",
    "deep.lab.bob.example",
    "carol.example",
    "else.example",
    "sub.else.example",
]
LOCALS = ["ann", "Ann+x", "joe", "o'brien", '"ann"', "ju\u0308rgen", "a%bob.example", "floors"]
FILE_LOCALS = ["ann", "ann+x", "o%27brien", "j%C3%BCrgen", "a%25bob.example"]
SENDERS = [
    "", "ceo@alice.example", "CEO+x@Alice.example", '"ceo"@alice.example', "chair@board.alice.example", "x@news.example",
    "mu\u0308ller@alice.example",
]  # fmt: skip
SENDER_PATTERNS = [
    "ceo@alice.example", "*@board.alice.example", "*@*.alice.example", "<>", "*@alice.example", "group:board", '"CEO"@alice.example',
    "M\u00dcLLER@alice.example", "*",
]  # fmt: skip
RECIPIENT_PATTERNS = ["*@bob.example", "ann@*", "*@*.example", "group:friends", "J\u00fcrgen@*"]
INSIDE = [
    'subject_tag = "[secret]"', 'subject_tag = ["[up]", "[vs]"]', 'header = "X-Secret"', 'header = "X-Secret: yes*"',
    "larger_than = 2000", "smaller_than = 2000", 'attachment_name = "*.xlsx"',
]  # fmt: skip
GROUPS = 'board = ["chair@board.alice.example", "<>"]\nfriends = ["joe@*", "*@carol.example"]\n'
SIZES = (400, 3000, 40_000)


# --- what is generated ---------------------------------------------------------------------------------------------


class Made(random.Random):
    """Files, mails and supplies by chance."""

    def maybe(self, chance: float, text: str) -> str:
        return text if self.random() < chance else ""

    def levels(self, clear: float) -> str:
        if self.random() < clear:
            return 'levels = ["plaintext"]\n'
        found = self.sample(["otp", "aes", "pqc", "rsa"], self.randint(1, 3))
        return f"levels = {found}\n".replace("'", '"')

    def settings(self, *, raises: bool = False) -> str:
        quantum = self.choice(["preferred", "required"] if raises else ["off", "preferred", "required"])
        limit = self.choice(['"1 KiB"', "2000", '{ otp = "1 KiB" }', '{ otp = 100, pqc = "2 KiB" }', "{ 2 = 100 }"])
        return (
            self.maybe(0.3, f'quantum = "{quantum}"\n')
            + self.maybe(0.3, f"max_size = {limit}\n")
            + self.maybe(0.5, f'otherwise = "{self.choice(["hold", "refuse"])}"\n')
            + self.maybe(0.3, f'impossible = "{self.choice(["hold", "refuse"])}"\n')
            + self.maybe(0.2, 'hold_for = "1 h"\n')
            + self.maybe(0.3, f'priority = "{"normal" if raises else self.choice(["low", "low", "normal"])}"\n')
            + self.maybe(0.15, 'kem = ["ml-kem-1024", "hqc-256"]\n')
        )

    def until(self) -> str:
        return self.maybe(
            0.1, f"until = {self.choice([date(2020, 1, 31), datetime.now(UTC).date(), date(2999, 1, 1)])}\n"
        )

    def rule(self) -> str:
        sender = f"sender = {self.texts(SENDER_PATTERNS)}\n"
        inside = self.choice(INSIDE) + "\n"
        raises = self.random() < 0.6
        condition = (inside + self.maybe(0.3, sender)) if raises else sender
        levels = self.maybe(0.8, self.levels(0.0 if raises else 0.15))
        settings = self.settings(raises=raises) or 'sign = "ML-DSA-87"\n'
        return f"[[when]]\n{condition}{levels}{settings}{self.until()}"

    def floor(self) -> str:
        conditions = [f"sender = {self.texts(SENDER_PATTERNS)}", f"recipient = {self.texts(RECIPIENT_PATTERNS)}"]
        found = self.sample([*conditions, self.choice(INSIDE)], self.randint(1, 2))
        return "[[floor]]\n" + "\n".join(found) + f"\n{self.levels(0.0)}{self.settings(raises=True)}"

    def texts(self, patterns: Sequence[str]) -> str:
        return json.dumps(self.sample(list(patterns), self.randint(1, 2)))

    def file(self, scope: str) -> str:
        peer = self.maybe(0.2, f'peer = "{self.choice(["bob", "carol"])}"\n')
        subdomains = self.maybe(0.5, "subdomains = true\n") if scope == "domain" else ""
        rules = "".join(self.rule() for _ in range(self.choice([0, 0, 1, 2, 4])))
        return peer + self.levels(0.15) + subdomains + self.settings() + self.until() + rules

    def files(self, directory: Path) -> tuple[dict[str, str], PolicySet]:
        """Texts by name, and the set that the relay makes of them; what it does not take is made again."""
        scopes = {f"{domain}.toml": "domain" for domain in DOMAINS if self.random() < 0.6}
        scopes |= {
            f"{domain}/{local}.toml": "person" for domain in DOMAINS for local in FILE_LOCALS if self.random() < 0.12
        }
        scopes |= {"default.toml": "default"} if self.random() < 0.7 or not scopes else {}
        scopes |= {"floors.toml": "floors"} if self.random() < 0.5 else {}
        files = {"groups.toml": GROUPS}
        faulty = list(scopes)
        shutil.rmtree(directory, ignore_errors=True)
        while faulty:
            made = {name: self.floors() if name == "floors.toml" else self.file(scopes[name]) for name in faulty}
            files |= made
            write(directory, made | {"groups.toml": GROUPS})
            try:
                return files, load_policies(directory, PEERS)
            except ConfigError as error:
                faulty = [name for name in scopes if any(f"{directory}/{name}:" in each for each in error.problems)]
        raise AssertionError("nothing is wrong with any file, and they do not load")

    def floors(self) -> str:
        return "\n".join(self.floor() for _ in range(self.randint(1, 3)))

    def facts(self) -> Facts:
        people = [f"{self.choice(LOCALS)}@{self.choice(DOMAINS)}" for _ in range(self.randint(1, 4))]
        hidden = self.choice([0, 0, 900])
        return Facts(
            sender=self.choice(SENDERS),
            recipients=tuple(dict.fromkeys(people)),
            octets=self.choice(SIZES) + hidden,
            hidden=hidden,
            waited=self.choice([10, 7200]),
            subject=self.choice(["hello", "[SECRET] x", "[up]", "[vs] [secret]"]),
            fields=tuple(self.sample(["X-Secret: yes indeed", "X-Secret: no", "X-Other: yes"], self.randint(0, 1))),
            attachment=self.choice(["", "", "Budget.XLSX", "notes.txt"]),
            unclear=self.random() < 0.05,
        )

    def ability(self) -> Ability:
        cannot = [(self.choice(["otp", "pqc", "rsa", "hqc-256"]), self.choice(["bob", "carol"])) for _ in range(3)]
        keys = {(peer, use): self.choice(["all", "all", "normal", "none"]) for peer in PEERS for use in ("otp", "aes")}
        return Ability(
            frozenset(self.sample(cannot, self.randint(0, 3))),
            frozenset(["bob"] if self.random() < 0.1 else []),
            keys,
        )


def message_of(facts: Facts) -> bytes:
    """A message of these facts, whose size is exactly theirs."""
    received = format_datetime(datetime.now(UTC) - timedelta(seconds=facts.waited))
    lines = [f"Received: from a by b; {received}", f"Subject: {facts.subject}", *facts.fields, "MIME-Version: 1.0"]
    body = "text\r\n"
    if facts.unclear:
        lines.append("Content-Type: multipart/mixed")
    elif facts.attachment:
        lines.append('Content-Type: multipart/mixed; boundary="b"')
        what = f'Content-Type: x/y\r\nContent-Disposition: attachment; filename="{facts.attachment}"'
        body = f"--b\r\n\r\ntext\r\n--b\r\n{what}\r\n\r\nx\r\n--b--\r\n"
    if facts.hidden:
        lines.append("Bcc: " + "x" * (facts.hidden - len("Bcc: @x.example\r\n")) + "@x.example")
    raw = ("\r\n".join(lines) + "\r\n\r\n" + body).encode()
    assert len(raw) <= facts.octets
    return raw + b"x" * (facts.octets - len(raw))


# --- what is compared ----------------------------------------------------------------------------------------------


def check_decisions(policies: PolicySet, facts: Facts, message: bytes, said: Mapping[str, Said]) -> None:
    """Decision and explanation are what the documents say."""
    content = MessageFacts(message)
    for recipient, expected in said.items():
        explanation = policies.explain(facts.sender, recipient, content)
        if expected.file is None:
            with pytest.raises(PolicyHolds):
                policies.decide(facts.sender, recipient, content)
            assert explanation.decision is None
            continue
        decision = policies.decide(facts.sender, recipient, content)
        assert explanation.decision == decision
        got = {
            "levels": list(decision.levels),
            "quantum": decision.quantum,
            "max_size": {level: octets for level, octets in decision.max_size if level in decision.levels},
            "otherwise": decision.otherwise,
            "impossible": decision.impossible,
            "hold_for": decision.hold_for,
            "priority": decision.priority,
            "kem": set(decision.kem),
        }
        assert got == expected.settings
        assert decision.peer == expected.peer
        assert decision.source.removeprefix(f"{policies.directory}/") in (expected.file, "floors.toml")
        assert bool(explanation.raised) == expected.raised


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
    site = PolicySite(planner.config, {}, policies)
    sample = Sample("x", facts.sender, facts.recipients, facts.octets, MessageFacts(message))
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
    mail = Mail(Envelope(facts.sender, tuple(map(Recipient, facts.recipients))), message_of(facts))
    sealer = Sealer(lambda: planner, lambda: policies, cast("KeyRing", Keys(can.keys)))

    log.entries.clear()
    in_shadow = [(who, each) for each in await Shadow(sealer).foresee(mail) for who in each.recipients]
    assert sorted(who for who, _ in in_shadow) == sorted(now)
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
    outgoing = Outgoing(cast("Any", None), sealer, cast("Any", None), cast("Audit", ledger), cast("Any", None))
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
    best = {who: each.outcome(replace(facts, octets=0, hidden=0), Ability()) for who, each in said.items()}
    clear = {who: "plaintext" for who in left if now[who] == "in clear"}
    assert less == clear | {who: "downgrade" for who in left if who not in clear and now[who] != best[who]}
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


@pytest.mark.parametrize("part", range(4))
async def test_all_that_decides_foresees_seals_and_tells_is_what_the_documents_say(
    tmp_path: Path, log: LogCapture, part: int
) -> None:
    decisions = mails = 0
    seed = random.randrange(2**32) if SETS else part
    made = Made(seed)
    for number in range((SETS or 60) // 4):
        files, policies = made.files(tmp_path / "policies")
        reference = Reference(files, OWNERS)
        for each in range(MAILS_EACH):
            facts, can = made.facts(), made.ability()
            planner = planner_of(can, tmp_path / "alice", compression=made.random() < 0.3)
            try:
                await check_all(planner, policies, facts, reference, can)
                if each == 0:
                    await check_mail(planner, policies, facts, reference, can, log)
                    mails += 1
                decisions += len(facts.recipients)
            except Exception as error:
                case = "\n".join(map(str, [facts, can, *(f"--- {name}\n{text}" for name, text in files.items())]))
                raise AssertionError(f"seed {seed}, set {number}: {error}\n{case}") from error
    sys.stderr.write(f"seed {seed}: {decisions} decisions, {mails} mails sealed, all agree\n")
