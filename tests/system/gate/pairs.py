"""Generated sets of policy files and edits of them: patterns, days, tags, peers, tests, levels, sizes, floors, rules.
Standard: policies/README.md; about half of the edits go one way, and half the other.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from tests.testlib.gate_reference import LEVELS, GateSite, conditions

OWNERS = {"bob.example": "bob", "lab.bob.example": "bob", "carol.example": "carol"}
OWN = frozenset({"alice.example"})
DOMAINS = ["bob.example", "lab.bob.example", "carol.example", "else.example", "sub.else.example", "alice.example"]
LOCALS = ["ann", "ann+x", "joe", "o'brien", "ceo", "ann-x"]
SENDERS = [
    "ceo@alice.example", "*@board.alice.example", "*@*.alice.example", "<>", "c*@alice.example", "*@alice.example", "bot@alice.example",
    "*ceo*@*", "a*@board.alice.example", "group:board", "legal+deals@alice.example", "*@relay.example", "*bot@*.example",
]  # fmt: skip
RECIPIENTS = [
    "*@bob.example", "ann@*", "*@*.example", "ann+board@bob.example", "*+board@*", "joe@bob.example", "group:friends", "a*@else.example",
    "*@sub.else.example", "nobody@carol.example", "*@below.else.example",
]  # fmt: skip
LOGINS = ["ann", "a*", "*@alice.example", "<>", "registry", "*bot"]
TAGS = ["[secret]", "secret", "[vs]", "[vs-nfd]", "plan"]
FIELDS = ["X-Secret", "X-Secret: yes*", "X-Secret: *yes*", "X-Class: *secret*", "X-Class: secret"]
TYPES = ["application/*", "application/x*", "application/pdf", "image/*", "*/*"]
NAMES = ["*.xls*", "*.xlsx", "*befund*", "*.dcm", "*", "plan.*", "*plan*"]
SIZES = [500, 2000, "3 KiB", 20_000, "64 KiB"]
LISTS: list[list[Any]] = [
    ["otp"],
    ["aes"],
    ["pqc"],
    ["rsa"],
    ["otp", "aes"],
    ["aes", "pqc"],
    ["otp", "aes", "pqc"],
    ["pqc", "rsa"],
    ["aes", "rsa"],
    [1, 3],
    ["otp", "pqc", "rsa"],
]
ODD: list[list[Any]] = [["aes", "otp"], ["pqc", "otp"], ["rsa", "aes"], ["pqc", "aes", "otp"]]
KEMS = [
    ["ml-kem-1024", "hqc-256"],
    ["ml-kem-1024", "frodokem-1344-shake"],
    ["ml-kem-1024", "hqc-256", "frodokem-1344-shake"],
]
GROUPS = {"board": ["chair@alice.example", "*@board.alice.example"], "friends": ["joe@*", "*@carol.example"]}
ASKED: dict[str, list[Any]] = {
    "sender": SENDERS, "not_sender": SENDERS, "author": [each for each in SENDERS if each != "<>"], "not_author": [each for each in SENDERS if each != "<>"],
    "login": LOGINS, "not_login": LOGINS, "recipient": RECIPIENTS, "not_recipient": RECIPIENTS, "subject_tag": TAGS, "header": FIELDS,
    "attachment_type": TYPES, "attachment_name": NAMES,
}  # fmt: skip
INSIDE = ["author", "not_author", "login", "not_login", "subject_tag", "header", "attachment_type", "attachment_name"]

Tables = dict[str, Any]


@dataclass
class Pair:
    """Two sets, and what was done to the first."""

    kind: str
    old: Mapping[str, str]
    new: Mapping[str, str]
    site: GateSite
    what: str


class Maker:
    """Makes sets and edits."""

    def __init__(self, chance: random.Random, today: date) -> None:
        self.chance = chance
        self.today = today

    # --- sets -------------------------------------------------------------------------------------------------------

    def rule(self, *, floor: bool, by_sender: bool = False) -> Tables:
        """One rule or floor."""
        chance = self.chance
        found: Tables = {}
        if by_sender:
            names = ["sender"] if chance.random() < 0.8 else chance.choice([["not_sender"], ["sender", "not_sender"]])
        else:
            names = chance.sample(
                INSIDE
                if not floor
                else [*INSIDE, "sender", "recipient", "not_recipient", "sender", "recipient", "not_sender"],
                chance.choice([1, 1, 1, 2]),
            )
            if chance.random() < 0.15:
                names.append("sender")
        for name in dict.fromkeys(names):
            some = chance.sample(ASKED[name], chance.choice([1, 1, 1, 2, 3]))
            found[name] = some[0] if len(some) == 1 else some
        if not by_sender and chance.random() < 0.15:
            found[chance.choice(["larger_than", "smaller_than"])] = chance.choice(SIZES)
        found |= self.settings(chance.random() < 0.85, may_be_clear=by_sender)
        if not set(found) & {"levels", "quantum", "kem", "priority", "otherwise"}:
            found["levels"] = chance.choice(LISTS)
        if floor and found.get("quantum") == "off":
            del found["quantum"]
            found.setdefault("levels", chance.choice(LISTS))
        if floor and chance.random() < 0.15:
            found["inside"] = True
        return found

    def settings(self, with_levels: bool, *, may_be_clear: bool) -> Tables:
        """Some settings."""
        chance = self.chance
        found: Tables = {}
        if with_levels:
            found["levels"] = chance.choice(LISTS if chance.random() < 0.96 else ODD)
            if may_be_clear and chance.random() < 0.25:
                found["levels"] = ["plaintext"]
        clear = found.get("levels") == ["plaintext"]
        if with_levels and not clear and chance.random() < 0.25:
            found["max_size"] = (
                chance.choice(SIZES)
                if chance.random() < 0.4
                else {
                    chance.choice(
                        [{1: "otp", 2: "aes", 3: "pqc"}.get(each, each) for each in found["levels"]]
                    ): chance.choice(SIZES)
                }
            )
        if not clear and chance.random() < (0.15 if with_levels else 0.6):
            found["quantum"] = chance.choice(["off", "preferred", "required", "required"])
        if not clear and with_levels and "pqc" in found["levels"] and chance.random() < 0.15:
            found["kem"] = chance.choice(KEMS)
        if chance.random() < 0.1:
            found["otherwise"] = chance.choice(["hold", "refuse"])
        if chance.random() < 0.08:
            found["priority"] = "low" if may_be_clear and chance.random() < 0.6 else "normal"
        return found

    def file(self, *, default: bool = False, person: bool = False) -> Tables:
        """One policy file."""
        chance = self.chance
        found = self.settings(True, may_be_clear=True)
        if default and chance.random() < 0.4:
            found = {"levels": ["plaintext"], "reason": "public"}
        if not default and chance.random() < 0.3:
            found["peer"] = chance.choice(["bob", "carol"])
        if not default and not person and chance.random() < 0.3:
            found["subdomains"] = True
        if chance.random() < 0.15:
            found["require"] = chance.choice(["aes", "pqc", "sealed", ["pqc", "aes"], "none"])
            if found["require"] != "none" and chance.random() < 0.5:
                found["unprotected"] = chance.choice(["mark", "quarantine", "refuse"])
        found["when"] = [
            *(self.rule(floor=False, by_sender=True) for _ in range(chance.choice([0, 0, 0, 1, 2, 3]))),
            *(self.rule(floor=False) for _ in range(chance.choice([0, 0, 1, 2]))),
        ]
        chance.shuffle(found["when"])
        return found

    def base(self) -> tuple[Tables, GateSite]:
        """One set, as tables by the names of files."""
        chance = self.chance
        found: Tables = {"default.toml": self.file(default=True)}
        for domain in chance.sample(DOMAINS, chance.choice([1, 2, 2, 3])):
            if chance.random() < 0.8:
                found[f"{domain}.toml"] = self.file()
            if chance.random() < 0.4:
                local = chance.choice(LOCALS).replace("'", "%27")
                found[f"{domain}/{local}.toml"] = self.file(person=True)
        floors = [self.rule(floor=True) for _ in range(chance.choice([0, 1, 1, 2, 3, 4]))]
        if floors:
            found["floors.toml"] = {"floor": floors}
        found["groups.toml"] = deepcopy(GROUPS)
        separators = chance.choice(["+", "+", "+", "+-"])
        return found, GateSite(OWNERS, OWN, separators)

    def test(self) -> Tables:
        """One test, which need not be met."""
        chance = self.chance
        found: Tables = {
            "sender": chance.choice(["ceo@alice.example", "<>", "a@x.example"]),
            "recipient": f"{chance.choice(['ann', 'nobody'])}@{chance.choice(DOMAINS)}",
            "expect": chance.choice([*LISTS[:6], "held", "refused", "plaintext"]),
        }
        if chance.random() < 0.3:
            found["subject"] = chance.choice(TAGS)
        if chance.random() < 0.2:
            found["size"] = chance.choice(SIZES)
        for name, values in (
            ("peer", ["bob", "carol"]),
            ("quantum", ["preferred", "required"]),
            ("file", ["floors.toml"]),
            ("otherwise", ["hold", "refuse"]),
        ):
            if chance.random() < 0.25:
                found[name] = chance.choice(values)
        if chance.random() < 0.2:
            found["until"] = self.day()
        return found

    def day(self) -> date:
        """A day, mostly to come."""
        return self.today + timedelta(days=self.chance.choice([-400, -1, 0, 1, 7, 30, 365, 366, 800]))

    # --- edits ------------------------------------------------------------------------------------------------------

    def pair(self, kind: str) -> Pair | None:
        """A set and an edit of it, or the other way round; None where nothing could be edited."""
        base, site = self.base()
        edits: dict[str, Callable[[Tables], str]] = {
            "patterns": self.edit_patterns, "days": self.edit_days, "tags": self.edit_tags, "peers": self.edit_peers, "tests": self.edit_tests,
            "others": self.edit_others,
        }  # fmt: skip
        self.prepare(kind, base)
        edited = deepcopy(base)
        what = edits[kind](edited)
        if self.chance.random() < 0.1:
            what += "; " + self.edit_others(edited)
        if not what or edited == base:
            return None
        old, new = (base, edited) if self.chance.random() < 0.5 else (edited, base)
        before, after = ({name: toml(table, name) for name, table in each.items()} for each in (old, new))
        return Pair(kind, before, after, site, what)

    def prepare(self, kind: str, base: Tables) -> None:
        """Puts what is edited into a set."""
        chance = self.chance
        if kind == "days":
            for name, table in base.items():
                if name in ("floors.toml", "groups.toml"):
                    continue
                for each in (table, *table["when"]):
                    if chance.random() < (0.15 if name == "default.toml" else 0.5):
                        self.dated(each)
        if kind == "tags":
            base.setdefault("floors.toml", {"floor": []})["floor"].append(
                self.rule(floor=True)
                | {
                    "recipient": chance.choice(
                        ["*+board@*", "ann+board@bob.example", "*+x@bob.example", "ann@bob.example", "*-x@*", "ann+*@*"]
                    )
                }
            )
            base.setdefault("bob.example.toml", self.file())
            if chance.random() < 0.6:
                base["bob.example/ann.toml"] = self.file(person=True)
        if kind == "patterns":
            base.setdefault("floors.toml", {"floor": []})["floor"].append(self.rule(floor=True))
        if kind == "peers":
            for name in [name for name in base if name not in ("floors.toml", "groups.toml", "default.toml")]:
                if chance.random() < 0.6:
                    base[name]["peer"] = chance.choice(["bob", "carol"])
        if kind == "tests":
            base["tests.toml"] = {"test": [self.test() for _ in range(chance.choice([1, 2, 3]))]}

    def dated(self, table: Tables) -> None:
        """Gives a file or rule days."""
        days = sorted((self.day(), self.day()))
        dice = self.chance.random()
        if dice < 0.6:
            table["until"] = days[1]
        elif dice < 0.8:
            table["since"] = days[0]
        else:
            table["since"], table["until"] = days

    def rules_of(self, tables: Tables) -> list[Tables]:
        """All rules and floors."""
        return [
            rule
            for name, table in tables.items()
            for rule in (
                [] if name in ("groups.toml", "tests.toml") else table.get("floor", []) + table.get("when", [])
            )
        ]

    def edit_patterns(self, tables: Tables) -> str:
        """Makes one text of one condition narrower, or wider, or another one."""
        chance = self.chance
        places = [(rule, name) for rule in self.rules_of(tables) for name in ASKED if name in rule]
        places += [(tables["groups.toml"], name) for name in GROUPS]
        if not places:
            return ""
        rule, name = chance.choice(places)
        texts = rule[name] if isinstance(rule[name], list) else [rule[name]]
        texts = list(texts)
        number = chance.randrange(len(texts))
        if len(texts) > 1 and chance.random() < 0.2:
            what = f"{name}: without {texts.pop(number)}"
        else:
            other = self.narrower(name, texts[number])
            what = f"{name}: {texts[number]} -> {other}"
            if chance.random() < 0.15:
                texts.append(other)
            else:
                texts[number] = other
        rule[name] = texts[0] if len(texts) == 1 and name not in GROUPS else texts
        return what

    def narrower(self, name: str, text: str) -> str:
        """A text that fits less, in most cases."""
        chance = self.chance
        if text == "<>" or text.startswith("group:"):
            return str(chance.choice(ASKED["sender"]))
        if name == "subject_tag":
            return chance.choice([f"{text}x", f"[{text}", text[1:] or "x", chance.choice(TAGS)])
        dice = chance.random()
        if "*" in text and dice < 0.7:
            places = [place for place, letter in enumerate(text) if letter == "*"]
            place = chance.choice(places)
            return text[:place] + chance.choice(["a*", "*a", "x", "a", "*b*", "ceo*"]) + text[place + 1 :]
        if name == "header" and ":" not in text:
            return f"{text}: yes*"
        if dice < 0.85:
            place = chance.randrange(len(text) + 1)
            head, at, tail = text[:place], "*", text[place:]
            return f"{head}{at}{tail}" if ":" not in tail else f"{text}*"
        return str(chance.choice(ASKED.get(name, SENDERS[:3])))

    def edit_days(self, tables: Tables) -> str:
        """Changes a day of one file or rule, or what counts after it in another file."""
        chance = self.chance
        places = [table for name, table in tables.items() if name not in ("floors.toml", "groups.toml")]
        places += [rule for table in places for rule in table["when"]]
        if chance.random() < 0.35:  # the file with the day stays as it is
            return self.edit_others(tables)
        table = chance.choice(places)
        before = {name: table.pop(name) for name in ("since", "until") if name in table}
        if not before or chance.random() < 0.6:
            self.dated(table)
        return f"days: {before} -> {table.get('since')} {table.get('until')}"

    def edit_tags(self, tables: Tables) -> str:
        """Takes a floor on tags away, edits it, or gives a person with a tag a file."""
        chance = self.chance
        floors = tables["floors.toml"]["floor"]
        dice = chance.random()
        if dice < 0.35:
            return f"floor gone: {floors.pop()}"
        if dice < 0.7:
            floor = floors[-1]
            floor["recipient"] = chance.choice(
                [
                    "*+board@*",
                    "ann+board@bob.example",
                    "*+x@bob.example",
                    "ann@bob.example",
                    "*-x@*",
                    "ann+*@*",
                    "*@bob.example",
                    "ann*@bob.example",
                ]
            )
            return f"recipient: {floor['recipient']}"
        if dice < 0.85:
            tables[f"bob.example/{chance.choice(['ann+board', 'ann+x', 'joe+board', 'ann'])}.toml"] = self.file(
                person=True
            )
            return "a file of a person with a tag"
        for rule in self.rules_of(tables):
            if "sender" in rule:
                rule["sender"] = chance.choice(
                    [
                        "ceo+x@alice.example",
                        "ceo@alice.example",
                        "*+x@alice.example",
                        "legal+deals@alice.example",
                        "legal@alice.example",
                    ]
                )
                return f"sender: {rule['sender']}"
        return f"floor gone: {floors.pop()}"

    def edit_peers(self, tables: Tables) -> str:
        """Another peer in one file."""
        chance = self.chance
        names = [name for name in tables if name not in ("floors.toml", "groups.toml")]
        name = chance.choice(names)
        before = tables[name].pop("peer", None)
        other = chance.choice([each for each in ("bob", "carol", None) if each != before])
        if other is not None:
            tables[name]["peer"] = other
        return f"peer of {name}: {before} -> {other}"

    def edit_tests(self, tables: Tables) -> str:
        """A test is gone, new, or expects otherwise."""
        chance = self.chance
        tests = tables["tests.toml"]["test"]
        dice = chance.random()
        if dice < 0.2:
            tests.pop(chance.randrange(len(tests)))
            if not tests:
                del tables["tests.toml"]
            return "a test is gone"
        test = chance.choice(tests)
        if dice < 0.3:
            tests.append(self.test())
            return "a test is new"
        if dice < 0.4:
            chance.shuffle(tests)
            test["subject"] = "a plan"
            return "the mail of a test"
        name = chance.choice(["expect", "expect", "expect", "peer", "quantum", "until", "file", "otherwise"])
        if name in test and name != "expect" and chance.random() < 0.5:
            return f"{name}: {test.pop(name)} is gone"
        test[name] = {
            "expect": chance.choice([*LISTS[:6], "held", "refused", "plaintext"]), "peer": chance.choice(["bob", "carol"]),
            "quantum": chance.choice(["off", "preferred", "required"]), "until": self.day(), "file": chance.choice(["floors.toml", "bob.example.toml"]),
            "otherwise": chance.choice(["hold", "refuse"]),
        }[name]  # fmt: skip
        return f"{name}: {test[name]}"

    def edit_others(self, tables: Tables) -> str:
        """Anything else."""
        some = [
            self._levels, self._levels, self._limits, self._floor_gone, self._floor_gone, self._floor_new, self._order, self._order, self._rule_gone,
            self._rule_new, self._file_gone, self._file_new, self._quantum, self._kem, self._require, self._split, self._moved, self._harmless,
            self._sizes, self._inside, self._priority,
        ]  # fmt: skip
        for _ in range(10):
            if what := self.chance.choice(some)(tables):
                return what
        return ""

    def _places(self, tables: Tables) -> list[Tables]:
        files = [table for name, table in tables.items() if name not in ("floors.toml", "groups.toml", "tests.toml")]
        return [*files, *self.rules_of(tables)]

    def _levels(self, tables: Tables) -> str:
        table = self.chance.choice(self._places(tables))
        if "levels" not in table:
            return ""
        before = table["levels"]
        table["levels"] = self.chance.choice(LISTS)
        if self.chance.random() < 0.4 and before != ["plaintext"]:
            levels = list(before)
            levels.pop(self.chance.randrange(len(levels)))
            table["levels"] = levels or [self.chance.choice(LEVELS)]
        return f"levels: {before} -> {table['levels']}"

    def _limits(self, tables: Tables) -> str:
        table = self.chance.choice([each for each in self._places(tables) if "levels" in each])
        before = table.pop("max_size", None)
        if before is None or self.chance.random() < 0.7:
            table["max_size"] = (
                self.chance.choice(SIZES)
                if self.chance.random() < 0.5
                else {self.chance.choice(LEVELS): self.chance.choice(SIZES)}
            )
        return f"max_size: {before} -> {table.get('max_size')}"

    def _floor_gone(self, tables: Tables) -> str:
        floors = tables.get("floors.toml", {}).get("floor", [])
        if not floors:
            return ""
        gone = floors.pop(self.chance.randrange(len(floors)))
        if not floors:
            del tables["floors.toml"]
        return f"floor gone: {gone}"

    def _floor_new(self, tables: Tables) -> str:
        floors = tables.setdefault("floors.toml", {"floor": []})["floor"]
        floors.insert(self.chance.randrange(len(floors) + 1), self.rule(floor=True))
        return "floor new"

    def _order(self, tables: Tables) -> str:
        lists = [
            table[name]
            for table in tables.values()
            for name in ("floor", "when")
            if isinstance(table, dict) and len(table.get(name, [])) > 1
        ]
        if not lists:
            return ""
        some = self.chance.choice(lists)
        one, other = self.chance.sample(range(len(some)), 2)
        some[one], some[other] = some[other], some[one]
        return "order"

    def _rule_gone(self, tables: Tables) -> str:
        lists = [table["when"] for table in tables.values() if table.get("when")]
        if not lists:
            return ""
        some = self.chance.choice(lists)
        return f"rule gone: {some.pop(self.chance.randrange(len(some)))}"

    def _rule_new(self, tables: Tables) -> str:
        some = self.chance.choice([table["when"] for table in tables.values() if "when" in table])
        some.insert(self.chance.randrange(len(some) + 1), self.rule(floor=False, by_sender=self.chance.random() < 0.6))
        return "rule new"

    def _file_gone(self, tables: Tables) -> str:
        names = [name for name in tables if name not in ("floors.toml", "groups.toml", "tests.toml", "default.toml")]
        if not names:
            return ""
        name = self.chance.choice(names)
        del tables[name]
        return f"{name} gone"

    def _file_new(self, tables: Tables) -> str:
        domain = self.chance.choice(DOMAINS)
        name = (
            f"{domain}.toml"
            if self.chance.random() < 0.6
            else f"{domain}/{self.chance.choice(LOCALS)}.toml".replace("'", "%27")
        )
        if name in tables:
            return ""
        tables[name] = self.file(person="/" in name)
        return f"{name} new"

    def _quantum(self, tables: Tables) -> str:
        table = self.chance.choice(self._places(tables))
        before = table.pop("quantum", None)
        if before is None or self.chance.random() < 0.7:
            table["quantum"] = self.chance.choice(["off", "preferred", "required"])
        return f"quantum: {before} -> {table.get('quantum')}"

    def _priority(self, tables: Tables) -> str:
        table = self.chance.choice(self._places(tables))
        before = table.pop("priority", None)
        if before is None or self.chance.random() < 0.5:
            table["priority"] = self.chance.choice(["low", "normal"])
        return f"priority: {before} -> {table.get('priority')}"

    def _kem(self, tables: Tables) -> str:
        places = [table for table in self._places(tables) if "pqc" in table.get("levels", [])]
        if not places:
            return ""
        table = self.chance.choice(places)
        before = table.pop("kem", None)
        if before is None or self.chance.random() < 0.6:
            table["kem"] = self.chance.choice(KEMS)
        return f"kem: {before} -> {table.get('kem')}"

    def _require(self, tables: Tables) -> str:
        table = self.chance.choice([table for table in tables.values() if "when" in table])
        before = table.pop("require", None), table.pop("unprotected", None)
        if before[0] is None or self.chance.random() < 0.7:
            table["require"] = self.chance.choice(["aes", "pqc", "sealed", ["pqc", "aes"], "none"])
            if table["require"] != "none" and self.chance.random() < 0.6:
                table["unprotected"] = self.chance.choice(["mark", "quarantine", "refuse"])
        return f"require: {before} -> {table.get('require')} {table.get('unprotected')}"

    def _split(self, tables: Tables) -> str:
        """One floor as two, one for each text."""
        floors = tables.get("floors.toml", {}).get("floor", [])
        several = [
            (rule, name)
            for rule in floors
            for name in ASKED
            if isinstance(rule.get(name), list) and not name.startswith("not_")
        ]
        if not several:
            return ""
        rule, name = self.chance.choice(several)
        first, *rest = rule[name]
        place = floors.index(rule)
        floors[place : place + 1] = [rule | {name: first}, rule | {name: rest}]
        return f"{name} split"

    def _moved(self, tables: Tables) -> str:
        """A rule that raises becomes a floor."""
        lists = [table["when"] for table in tables.values() if table.get("when")]
        moved = [
            (some, rule)
            for some in lists
            for rule in some
            if not conditions(rule) <= {"sender", "not_sender"} and rule.get("quantum") != "off"
        ]
        if not moved:
            return ""
        some, rule = self.chance.choice(moved)
        some.remove(rule)
        rule = {name: value for name, value in rule.items() if name not in ("since", "until", "reason")}
        tables.setdefault("floors.toml", {"floor": []})["floor"].append(
            rule | ({"inside": True} if self.chance.random() < 0.5 else {})
        )
        return "rule moved to floors"

    def _harmless(self, tables: Tables) -> str:
        table = self.chance.choice(self._places(tables))
        name, value = self.chance.choice(
            [("otherwise", "refuse"), ("otherwise", "hold"), ("impossible", "refuse"), ("hold_for", "4 h")]
        )
        if table.get(name) == value:
            return ""
        table[name] = value
        return f"{name}: {value}"

    def _sizes(self, tables: Tables) -> str:
        places = [rule for rule in self.rules_of(tables) if {"larger_than", "smaller_than"} & set(rule)]
        if not places:
            return ""
        rule = self.chance.choice(places)
        name = "larger_than" if "larger_than" in rule else "smaller_than"
        rule[name] = self.chance.choice(SIZES)
        return f"{name}: {rule[name]}"

    def _inside(self, tables: Tables) -> str:
        floors = tables.get("floors.toml", {}).get("floor", [])
        if not floors:
            return ""
        floor = self.chance.choice(floors)
        floor["inside"] = not floor.get("inside", False)
        return f"inside: {floor['inside']}"


# --- as TOML --------------------------------------------------------------------------------------------------------


def toml(table: Tables, name: str) -> str:
    """A file as text."""
    if name == "groups.toml":
        return "".join(f"{key} = {value(each)}\n" for key, each in table.items())
    lines = [f"{key} = {value(each)}" for key, each in table.items() if key not in ("when", "floor", "test")]
    for key in ("when", "floor", "test"):
        for each in table.get(key, []):
            lines += [f"[[{key}]]", *(f"{name} = {value(one)}" for name, one in each.items())]
    return "\n".join(lines) + "\n"


def value(each: Any) -> str:
    """A value as TOML."""
    if isinstance(each, bool):
        return "true" if each else "false"
    if isinstance(each, str):
        return f'"{each}"'
    if isinstance(each, list):
        return f"[{', '.join(map(value, each))}]"
    if isinstance(each, dict):
        return f"{{ {', '.join(f'{key} = {value(one)}' for key, one in each.items())} }}"
    return str(each)
