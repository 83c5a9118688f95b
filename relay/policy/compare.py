"""Compares two sets of policies over all decisions that can differ, without any mail, for `qumail-relay policy diff`.
For every file, rule, pattern and floor of either set it makes the mail that they are about, and asks both sets.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from itertools import combinations
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote

from relay.errors import RelayError
from relay.policy.decide import PolicySet
from relay.policy.decision import Decision
from relay.policy.expected import DescribedMessage
from relay.policy.file import PolicyFile
from relay.policy.names import DEFAULT_FILE, SUFFIX, FoldedAddress, candidates, encode_local, parse_address
from relay.policy.patterns import AddressPatterns, Glob
from relay.policy.people import NULL_SENDER
from relay.policy.require import Demand
from relay.policy.rules import When
from relay.policy.settings import SealingSettings, today
from relay.policy.strength import never_weaker

Direction = Literal["down", "let go", "stopped", "other", "up"]
"""Of what leaves, or stops to leave: what is weaker anywhere counts as down."""

ORDER: tuple[Direction, ...] = ("down", "let go", "stopped", "other", "up")
"""The most important first."""
MAX_TRIES = 20_000
"""Of mails that are made for one kind of recipient; where there would be more, rules are tried one by one."""
MAX_DAYS = 20
"""On which something ends, and what is left is compared."""
MAX_CALLED = 3
"""So many senders are named."""
_ANYBODY = "anybody"
_ELSEWHERE = "elsewhere.invalid"
_SOMEBODY = f"{_ANYBODY}@{_ELSEWHERE}"
"""The sender whom no rule looks for."""
_COMPARED = ("levels", "peer", "quantum", "kem", "max_size", "otherwise", "impossible", "hold_for", "priority")
_QUANTA = ("off", "preferred", "required")


@dataclass(frozen=True, slots=True)
class Difference:
    """One kind of recipient whose mail the two sets treat otherwise, with a mail that shows it.

    `before` and `after` are None where the mail is held because nothing covers it. `changed` says what is otherwise.
    """

    recipients: str
    sender: str
    message: str
    before: Decision | None
    after: Decision | None
    changed: tuple[str, ...]
    direction: Direction
    senders: str = ""
    """Whose mail it is: all of whom something was tried, all but a few of them, or those few."""

    def as_dict(self) -> dict[str, Any]:
        """JSON's types, with stable names."""
        return {
            "recipients": self.recipients,
            "sender": self.sender,
            "senders": self.senders,
            "message": self.message,
            "before": list(self.before.levels) if self.before else None,
            "after": list(self.after.levels) if self.after else None,
            "in_clear": bool(self.after and self.after.in_clear),
            "changed": list(self.changed),
            "direction": self.direction,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """All differences, the most important first; `coarse` are recipients for whom not all was tried."""

    differences: tuple[Difference, ...]
    coarse: tuple[str, ...]

    @property
    def weaker(self) -> bool:
        """Whether anything that leaves is weaker, or leaves only now."""
        return any(each.direction in ("down", "let go") for each in self.differences)


class _Kind(NamedTuple):
    """Recipients whom both sets cannot tell apart: one of them, and how to call them all."""

    address: str
    called: str


class _SampleMessage(NamedTuple):
    """A message that rules look for, as `DescribedMessage` takes it, and how to call it."""

    called: str
    subject: str = ""
    fields: tuple[str, ...] = ()
    attachments: tuple[str, ...] = ()
    octets: int | None = None


def compare(old: PolicySet, new: PolicySet) -> Comparison:
    """Every decision that can differ between the two, today or when something has ended."""
    same = _same_for_all(old, new)
    kinds = [kind for kind in _kinds(old, new) if not same or _differ(old, new, parse_address(kind.address))]
    found, coarse = _compared(old, new, kinds)
    seen = {(each.recipients, each.direction, each.changed) for each in found}
    days = _days(old, new)
    for day in days[:MAX_DAYS]:
        later, _ = _compared(_on(old, day), _on(new, day), kinds)
        for each in later:
            if (told := (each.recipients, each.direction, each.changed)) not in seen:
                seen.add(told)
                found.append(replace(each, message=f"{each.message}, from {day} on"))
    if len(days) > MAX_DAYS:
        coarse.append(f"everybody, after {days[MAX_DAYS - 1]}")
    found.sort(key=lambda each: ORDER.index(each.direction))
    return Comparison(tuple(found), tuple(coarse))


def _days(old: PolicySet, new: PolicySet) -> list[date]:
    """The days from which on something counts no more, of the files that are not the same in both."""
    ends: set[date] = set()
    for one, other in ((old, new), (new, old)):
        for name, file in one.files.items():
            if (same := other.files.get(name)) is None or same.digest != file.digest:
                ends |= {each.until for each in (file.policy, *file.policy.when) if each.until is not None}
    return sorted(end + timedelta(days=1) for end in ends if today() <= end < date.max)


def _on(policies: PolicySet, day: date) -> PolicySet:
    """What still counts on a day to come."""

    def counts(settings: SealingSettings) -> bool:
        return settings.until is None or settings.until >= day

    files = {name: file for name, file in policies.files.items() if counts(file.policy)}
    for name, file in files.items():
        left = [each for each in zip(file.policy.when, file.rule_lines, strict=True) if counts(each[0])]
        if len(left) < len(file.policy.when):
            policy = file.policy.model_copy(update={"when": tuple(rule for rule, _ in left)})
            files[name] = replace(file, policy=policy, rule_lines=tuple(line for _, line in left))
    return replace(policies, files=files)


def _compared(old: PolicySet, new: PolicySet, kinds: Iterable[_Kind]) -> tuple[list[Difference], list[str]]:
    """The differences, and for whom rules were tried one by one only."""
    found: list[Difference] = []
    coarse: list[str] = []
    for kind in kinds:
        address = parse_address(kind.address)
        files = [_deciding(policies, address) for policies in (old, new)]
        rules = [rule for file in files for rule in (file.policy.when if file else ())]
        rules += [floor.when for each in (old, new) for floor in each.floors]
        tries = list(_tries(rules, old, new))
        if len(tries) > MAX_TRIES:
            coarse.append(kind.called)
            tries = list(_tries(rules, old, new, pairs=False))[:MAX_TRIES]
        found += _of_kind(old, new, kind, tries)
    return found, coarse


def _of_kind(
    old: PolicySet, new: PolicySet, kind: _Kind, tries: list[tuple[str, _SampleMessage]]
) -> Iterator[Difference]:
    """What these mails to one kind of recipient show, and what is asked of mail from them, each difference once."""
    seen: dict[tuple[Direction, tuple[str, ...]], Difference] = {}
    senders: dict[tuple[Direction, tuple[str, ...]], dict[str, None]] = {}
    for sender, message in tries:
        content = DescribedMessage(message.subject, message.fields, message.attachments, message.octets)
        before, after = (_decide(policies, sender, kind.address, content) for policies in (old, new))
        changed = _changed(before, after)
        # The same change may mean more for one mail than for another.
        if changed:
            told = (_direction(before, after), changed)
            senders.setdefault(told, {})[sender or NULL_SENDER] = None
            seen.setdefault(
                told, Difference(kind.called, sender or NULL_SENDER, message.called, before, after, changed, told[0])
            )
    every = dict.fromkeys(sender or NULL_SENDER for sender, _ in tries)
    for told, each in seen.items():
        yield replace(each, senders=_called(every, senders[told]))
    asked, asks = ({each.demand for each in policies.require(kind.address).each} for policies in (old, new))
    if asked != asks:
        changed = tuple(f"require: {demand} no longer" for demand in map(_demanded, asked - asks))
        changed += tuple(f"require: {demand} from now on" for demand in map(_demanded, asks - asked))
        direction: Direction = "down" if asked - asks else "up"
        yield Difference(kind.called, kind.address, "arriving", None, None, changed, direction, kind.called)


def _called(every: Collection[str], some: Collection[str]) -> str:
    """Some of all senders who were tried, in the shorter way."""
    others = [sender for sender in every if sender not in some]
    if not others:
        return "anybody"
    if _SOMEBODY in some:
        return f"anybody but {_listed(others)}"
    return _listed(list(some))


def _listed(senders: Sequence[str]) -> str:
    more = f" and {len(senders) - MAX_CALLED} more" if len(senders) > MAX_CALLED else ""
    return ", ".join(senders[:MAX_CALLED]) + more


def _demanded(demand: Demand) -> str:
    return f"{' and '.join(demand.layers)} of peer {demand.peer}, or {demand.otherwise}"


def _same_for_all(old: PolicySet, new: PolicySet) -> bool:
    """Whether what is for everybody is the same: floors and groups."""
    floors = [[floor.when for floor in each.floors] for each in (old, new)]
    return floors[0] == floors[1] and dict(old.groups) == dict(new.groups)


def _decide(policies: PolicySet, sender: str, recipient: str, content: DescribedMessage) -> Decision | None:
    try:
        return policies.decide(sender, recipient, content)
    except RelayError:
        return None


# --- whom a set can tell from others ------------------------------------------------------------------------------


def _kinds(old: PolicySet, new: PolicySet) -> Iterator[_Kind]:
    """Every kind of recipient that files, peers' domains and floors of either set make."""
    kinds: dict[str, _Kind] = {}
    for each in (old, new):
        for name, file in each.files.items():
            for kind in _of_file(name, file):
                kinds.setdefault(kind.address, kind)
        for domain in each.owners:
            kind = _Kind(f"{_ANYBODY}@{domain}", f"everybody else at {domain}")
            kinds.setdefault(kind.address, kind)
    kinds.setdefault(f"{_ANYBODY}@{_ELSEWHERE}", _Kind(f"{_ANYBODY}@{_ELSEWHERE}", "everybody else"))
    patterns = {
        glob
        for each in (old, new)
        for floor in each.floors
        for glob in AddressPatterns.of(getattr(floor.when, "recipient", None) or ()).all(each.groups)
    }
    domains = {kind.address.rpartition("@")[2] for kind in kinds.values()} if patterns else set()
    for glob in patterns:
        local = _witness(glob).partition("@")[0]
        for address in (_witness(glob), *(f"{local}@{domain}" for domain in domains)):
            if glob.matches(address) and _is_address(address):
                kinds.setdefault(address, _Kind(address, address))
    yield from kinds.values()


def _of_file(name: str, file: PolicyFile) -> Iterator[_Kind]:
    if name == DEFAULT_FILE:
        return
    if file.scope == "person":
        local = unquote(name.rpartition("/")[2].removesuffix(SUFFIX))
        plain = encode_local(local) == local
        quoted = local.replace("\\", "\\\\").replace('"', '\\"')
        address = f"{local}@{file.domain}" if plain else f'"{quoted}"@{file.domain}'
        yield _Kind(address, f"{local}@{file.domain}")
        return
    yield _Kind(f"{_ANYBODY}@{file.domain}", f"everybody else at {file.domain}")
    yield _Kind(f"{_ANYBODY}@{_ANYBODY}.{file.domain}", f"everybody below {file.domain}")


def _deciding(policies: PolicySet, address: FoldedAddress) -> PolicyFile | None:
    for name, step in candidates(address):
        file = policies.files.get(name)
        if file is not None and not file.policy.not_now and (step != "parent domain" or file.policy.subdomains):
            return file
    return None


def _differ(old: PolicySet, new: PolicySet, address: FoldedAddress) -> bool:
    """Whether more than comments differ in the files that may be about an address."""
    for name, _ in candidates(address):
        before, after = old.files.get(name), new.files.get(name)
        if before is None or after is None:
            if before is not after:
                return True
        elif before.digest != after.digest and before.policy != after.policy:
            return True
    return False


# --- the mails that rules look for ----------------------------------------------------------------------------------


def _tries(
    rules: list[When], old: PolicySet, new: PolicySet, *, pairs: bool = True
) -> Iterator[tuple[str, _SampleMessage]]:
    """Senders and messages: those that no rule looks for, those of each rule, and with `pairs` those of any two."""
    wanted = ((_senders(rule), each.groups) for rule in rules for each in (old, new))
    globs = list(dict.fromkeys(glob for patterns, groups in wanted for glob in patterns.all(groups)))
    senders = dict.fromkeys(["", f"{_ANYBODY}@{_ELSEWHERE}", *map(_witness, globs)])
    messages = dict.fromkeys([_SampleMessage("any"), *(message for rule in rules for message in _messages(rule))])
    if pairs:
        senders |= dict.fromkeys(both for one, other in combinations(globs, 2) if (both := _both(one, other)))
        asked = list(messages)[1:]
        messages |= dict.fromkeys(_joined(*two) for two in combinations(asked, 2))
        if len(asked) > 2:
            messages[_joined(*asked)] = None
    for sender in senders:
        if not sender or _is_address(sender):
            for message in messages:
                yield sender, message


def _messages(rule: When) -> Iterator[_SampleMessage]:
    """For each text of each condition a message that has it, and the first text of each other condition.

    What a rule for small messages leaves to others is larger.
    """
    if not rule.looks_inside:
        return
    if rule.smaller_than is not None:
        yield _SampleMessage(f"{rule.smaller_than} octets", octets=rule.smaller_than)
    texts = {
        name: tuple(text.replace("*", "x") for text in getattr(rule, name) or ("",))
        for name in ("subject_tag", "header", "attachment_type", "attachment_name")
    }
    for name, values in texts.items():
        for value in values if len(values) > 1 else values[: name == "subject_tag"]:
            one = {each: (value if each == name else others[0]) for each, others in texts.items()}
            yield _message(rule, one)


def _message(rule: When, texts: dict[str, str]) -> _SampleMessage:
    octets = None
    if rule.larger_than is not None:
        octets = rule.larger_than + 1
    elif rule.smaller_than is not None:
        octets = max(0, rule.smaller_than - 1)
    field = texts["header"]
    fields = (field if ":" in field else f"{field}: x",) if field else ()
    kind, name = texts["attachment_type"], texts["attachment_name"]
    attachments = (f"{name or 'x'}: {kind}" if kind else name,) if kind or name else ()
    said = [f"subject {texts['subject_tag']!r}"] if texts["subject_tag"] else []
    said += [f"field {each!r}" for each in fields] + [f"attachment {each!r}" for each in attachments]
    said += [f"{octets} octets"] if octets is not None else []
    return _SampleMessage(", ".join(said), texts["subject_tag"], fields, attachments, octets)


def _joined(*messages: _SampleMessage) -> _SampleMessage:
    """One message that has what all of these have."""
    return _SampleMessage(
        ", ".join(dict.fromkeys(each.called for each in messages)),
        " ".join(dict.fromkeys(each.subject for each in messages if each.subject)),
        tuple(dict.fromkeys(field for each in messages for field in each.fields)),
        tuple(dict.fromkeys(name for each in messages for name in each.attachments)),
        max((each.octets for each in messages if each.octets is not None), default=None),
    )


def _senders(rule: When) -> AddressPatterns:
    return rule.people.get("sender", AddressPatterns())


def _witness(glob: Glob) -> str:
    """A text that fits; "" for the null sender."""
    return "" if str(glob) == NULL_SENDER else _ANYBODY.join(glob.parts)


def _both(one: Glob, other: Glob) -> str:
    """A sender that fits both, or "" where none is found."""
    local, domain = (_common(*(str(glob).rpartition("@")[place] for glob in (one, other))) for place in (0, 2))
    return f"{local}@{domain}" if local and domain else ""


def _common(one: str, other: str) -> str:
    """A text that fits two patterns, or ""."""
    globs = Glob.of(one), Glob.of(other)
    begin, end = (max((glob.parts[place] for glob in globs), key=len) for place in (0, -1))
    middle = [part for glob in globs for part in glob.parts[1:-1]]
    for text in (one, other, _ANYBODY.join([begin, *middle, end])):
        if "*" not in text and all(glob.matches(text) for glob in globs):
            return text
    return ""


def _is_address(text: str) -> bool:
    try:
        parse_address(text)
    except ValueError:
        return False
    return True


# --- what is otherwise ----------------------------------------------------------------------------------------------


def _changed(before: Decision | None, after: Decision | None) -> tuple[str, ...]:
    if before is None or after is None:
        if before is after:
            return ()
        return (f"{_shown(after)} instead of {_shown(before)}",)
    values = ((name, getattr(before, name), getattr(after, name)) for name in _COMPARED)
    return tuple(f"{name}: {_text(now)} instead of {_text(was)}" for name, was, now in values if was != now)


def _shown(decision: Decision | None) -> str:
    return "held" if decision is None else ", then ".join(decision.levels)


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(" ".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in value) or "none"
    return "none" if value is None else str(value)


def _direction(before: Decision | None, after: Decision | None) -> Direction:
    if before is None or after is None:
        return "let go" if before is None else "stopped"
    steps = [*_signatures(before, after)]
    for octets in _sizes(before, after):
        was, now = (
            tuple(level for level in each.levels if not each.too_big(level, octets)) for each in (before, after)
        )
        if was and now:
            steps.append(-1 if not never_weaker(now, was) else not never_weaker(was, now))
    if any(step < 0 for step in steps):
        return "down"
    hopeless = [(before.hopeless(octets), after.hopeless(octets)) for octets in _sizes(before, after)]
    if any(was != now for was, now in hopeless):
        return "let go" if (True, False) in hopeless else "stopped"
    return "up" if any(step > 0 for step in steps) else "other"


def _sizes(*decisions: Decision) -> list[int]:
    """Sizes of messages, one for each that they can tell from others."""
    limits = {limit for each in decisions for _, limit in each.max_size}
    limits |= {each.max_bounce for each in decisions if each.max_bounce is not None}
    return sorted({0, *(limit + 1 for limit in limits)})


def _signatures(before: Decision, after: Decision) -> Iterator[int]:
    """Of levels pqc and rsa: below 0 for each thing that is weaker after, above 0 for each that is stronger."""
    if all({"pqc", "rsa"} & set(each.levels) for each in (before, after)):
        yield _QUANTA.index(after.quantum) - _QUANTA.index(before.quantum)
    if "pqc" in before.levels and "pqc" in after.levels:
        yield -1 if set(before.kem) - set(after.kem) else len(after.kem) - len(before.kem)
