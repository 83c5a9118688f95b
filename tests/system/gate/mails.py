"""Mails made to find where one set is weaker than another: at every pattern, tag, size and day that either set names.
Standard: they prove nothing, and there are many of them; those about what differs come first.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from typing import Any

from tests.testlib.gate_reference import MAX_BOUNCE, GateMail, GatePolicies, doubtful, listed, size_of, sizes, split

TODAY = date.today
FILLINGS = ("", "a", "zq", "ceo", "b1", "x.y", "anybody")


class Pools:
    """For each thing that a mail has, what may make a difference; `first` are those of rules that differ."""

    def __init__(self, old: GatePolicies, new: GatePolicies, today: date, chance: random.Random) -> None:
        self.chance = chance
        self.today = today
        self._sets = (old, new)
        rules = [
            [*each.floors, *(rule for file in each.files.values() for rule in file.get("when", []))]
            for each in self._sets
        ]
        self.rules = rules[0] + rules[1]
        self.differing = [rule for rule in rules[0] if rule not in rules[1]] + [
            rule for rule in rules[1] if rule not in rules[0]
        ]
        self.days = sorted(self._days())
        self.recipients = list(dict.fromkeys(self._recipients()))
        self.sizes = sorted(self._sizes())

    def _days(self) -> set[date]:
        found = {self.today}
        for each in self._sets:
            for file in each.files.values():
                for table in (file, *file.get("when", [])):
                    for day, after in ((table.get("since"), 0), (table.get("until"), 1)):
                        if day is not None and day + timedelta(days=after) > self.today:
                            found.add(day + timedelta(days=after))
        return found

    def _recipients(self) -> Iterator[str]:
        seps = self._sets[0].site.separators
        domains = {*self._sets[0].site.owners, *self._sets[0].site.own, "elsewhere.example", "elsewhere.invalid"}
        tags = {""}
        for each in self._sets:
            for name in each.files:
                domain, slash, local = name.removesuffix(".toml").partition("/")
                if slash:
                    local = local.replace("%27", "'").replace("%25", "%")
                    domains.add(domain)
                    yield f"{local}@{domain}"
                    yield from (f"{local}{sep}{tag}@{domain}" for sep in seps for tag in ("x", "board", ""))
                elif name != "default.toml":
                    domains |= {domain, f"below.{domain}", f"deep.below.{domain}"}
        for rule in self.rules:
            for name in ("recipient", "not_recipient"):
                for text in listed(rule.get(name, [])):
                    for pattern in self._expanded(text):
                        for filling in ("", "a", "zq"):
                            address = pattern.replace("*", filling)
                            local, domain = split(address)
                            if local and domain and all(domain.split(".")):
                                yield address
                                tags.add(local.partition("+")[2])
                            if "*" in pattern.rpartition("@")[2]:
                                yield from (f"{local or 'a'}@{each}" for each in domains)
        for domain in sorted(domains):
            yield f"nobody@{domain}"
            yield from (f"nobody{sep}{tag or 'x'}@{domain}" for sep in seps for tag in sorted(tags))

    def _sizes(self) -> set[int]:
        found = {1, 1000, MAX_BOUNCE, MAX_BOUNCE + 1}
        for each in self._sets:
            tables = [*each.floors, *(table for file in each.files.values() for table in (file, *file.get("when", [])))]
            for table in tables:
                for limit in sizes(table["max_size"]).values() if "max_size" in table else ():
                    found |= {limit, limit + 1}
                for name in ("larger_than", "smaller_than"):
                    if name in table:
                        found |= {size_of(table[name]) - 1, size_of(table[name]), size_of(table[name]) + 1}
        return {each for each in found if each > 0}

    def _expanded(self, text: str) -> list[str]:
        if not text.startswith("group:"):
            return [text]
        return [each for some in self._sets for each in some.groups.get(text[6:], [])]

    # --- one mail ---------------------------------------------------------------------------------------------------

    def filled(self, pattern: str) -> str:
        """A text that fits a pattern."""
        filling = self.chance.choice(FILLINGS)
        return filling.join(pattern.split("*")) if self.chance.random() < 0.8 else pattern.replace("*", "zq")

    def address(self, patterns: Any) -> str:
        """One who fits one of some patterns, perhaps with a tag."""
        pattern = self.chance.choice(self._expanded(self.chance.choice(listed(patterns))) or ["a@b.example"])
        if pattern == "<>":
            return ""
        found = self.filled(pattern)
        local, domain = split(found)
        if not local or not all(domain.split(".")):
            found = pattern.replace("*", "a")
        if self.chance.random() < 0.2:
            local, domain = split(found)
            found = f"{local}{self.chance.choice(self._sets[0].site.separators)}{self.chance.choice(['x', 'board', ''])}@{domain}"
        return found

    def mail(self, rules: Sequence[dict[str, Any]]) -> GateMail:
        """One for which some rules may be, and others as chance wants."""
        chance = self.chance
        said: dict[str, Any] = {
            "sender": self._sender(rules),
            "recipient": chance.choice(self.recipients),
            "day": self.today if chance.random() < 0.4 else chance.choice(self.days),
            "authors": self._authors(rules),
            "login": self._login(rules),
            "subject": " ".join(self._texts(rules, "subject_tag")),
            "fields": tuple(self._fields(rules)),
            "attachments": tuple(self._attachments(rules)),
            "octets": self._size(rules),
        }
        to = [rule for rule in rules if "recipient" in rule]
        if to and chance.random() < 0.8:
            address = self.address(to[0]["recipient"])
            said["recipient"] = address or said["recipient"]
        if chance.random() < 0.1:
            said["hidden"] = chance.choice([1, 200, 100_000])
            said["octets"] += said["hidden"]
        return GateMail(**said)

    def _asking(self, rules: Sequence[dict[str, Any]], *names: str) -> list[Any]:
        """What these rules ask for, or all do: not to fit a rule may make a difference, too."""
        some = [rule[name] for rule in rules for name in names if name in rule]
        if not some or self.chance.random() < 0.1:
            some = [rule[name] for rule in self.rules for name in names if name in rule]
            return some if self.chance.random() < 0.5 else []
        return some

    def _sender(self, rules: Sequence[dict[str, Any]]) -> str:
        asking = self._asking(rules, "sender", "not_sender")
        dice = self.chance.random()
        if asking and dice < 0.75:
            found = self.address(self.chance.choice(asking))
        elif dice < 0.85:
            found = self.chance.choice(["", "x%y@alice.example", "nobody@[192.0.2.1]", "a@b..example"])
        else:
            found = "nobody@nowhere.invalid"
        if found and not doubtful(found) and self.chance.random() < 0.15:
            local, domain = split(found)
            found = self.chance.choice(
                [f"SRS0=ab=cd={domain}={local}@relay.example", f"prvs=1234={local}@{domain}", f"{local}@{domain}.",
                 f"SRS1=ab=x.example==ab=cd={domain}={local}@srs.relay.example", f"SRS0=ab={domain}@relay.example",
                 f"SRS0=ab=cd=relay.example=prvs=12={local}@{domain}"]
            )  # fmt: skip
        return found

    def _authors(self, rules: Sequence[dict[str, Any]]) -> tuple[str, ...] | None:
        asking = self._asking(rules, "author", "not_author")
        if self.chance.random() < 0.05:
            return None
        found = (
            [self.address(self.chance.choice(asking)) or "nobody@nowhere.invalid"]
            if asking and self.chance.random() < 0.8
            else []
        )
        if asking and self.chance.random() < 0.2:
            found.append(self.address(self.chance.choice(asking)) or "x@nowhere.invalid")
        return tuple(found) or ("nobody@nowhere.invalid",)

    def _login(self, rules: Sequence[dict[str, Any]]) -> str | None:
        asking = self._asking(rules, "login", "not_login")
        if self.chance.random() < 0.1:
            return None
        if not asking or self.chance.random() < 0.2:
            return ""
        found = self.filled(self.chance.choice(listed(self.chance.choice(asking))))
        return "" if found == "<>" else found

    def _texts(self, rules: Sequence[dict[str, Any]], name: str) -> list[str]:
        return [self.chance.choice(listed(rule[name])) for rule in rules if name in rule]

    def _fields(self, rules: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
        for text in self._texts(rules, "header"):
            name, colon, value = text.partition(":")
            yield name.strip(), self.filled(value).strip() if colon else "zq"

    def _attachments(self, rules: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
        for rule in rules:
            if "attachment_name" in rule or "attachment_type" in rule:
                name = self.filled(self.chance.choice(listed(rule.get("attachment_name", "*"))))
                kind = self.filled(self.chance.choice(listed(rule.get("attachment_type", "application/zq"))))
                yield name or "zq", kind

    def _size(self, rules: Sequence[dict[str, Any]]) -> int:
        least = max((size_of(rule["larger_than"]) + 1 for rule in rules if "larger_than" in rule), default=1)
        most = min((size_of(rule["smaller_than"]) - 1 for rule in rules if "smaller_than" in rule), default=10**9)
        fitting = [each for each in self.sizes if least <= each <= most]
        return self.chance.choice(fitting if fitting and self.chance.random() < 0.9 else self.sizes)

    def mails(self, number: int) -> Iterator[GateMail]:
        """Many."""
        for _ in range(number):
            dice = self.chance.random()
            some: list[dict[str, Any]] = []
            if self.differing and dice < 0.7:
                some.append(self.chance.choice(self.differing))
            if self.rules and self.chance.random() < 0.5:
                some.append(self.chance.choice(self.rules))
            if self.rules and self.chance.random() < 0.1:
                some += self.chance.sample(self.rules, min(3, len(self.rules)))
            yield self.mail(some)
