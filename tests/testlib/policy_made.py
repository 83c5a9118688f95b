"""Policy files and mails by chance, with all of the language of policies/README.md that a reference knows.
A set says of each file where it belongs, so that what a relay does not take can be made again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from email.utils import format_datetime

from tests.testlib.policy_reference import ORDER, Ability, Facts, SiteSays

PEERS = {"bob": ["bob.example", "lab.bob.example"], "carol": ["carol.example"]}
OWNERS = {domain: peer for peer, domains in PEERS.items() for domain in domains}
TAKES_FROM = {"bob": frozenset("*"), "carol": frozenset({"news.example"})}
"""The domains of other senders whose mail a peer takes, as relay.toml has them."""
OWN = frozenset({"alice.example", "board.alice.example"})
DOMAINS = [
    "bob.example", "lab.bob.example", "deep.lab.bob.example", "carol.example", "else.example", "sub.else.example",
    "alice.example", "xn--bcher-kva.example",
]  # fmt: skip
SPELLED = {"xn--bcher-kva.example": ["b\u00fccher.example", "B\u00dcCHER.Example", "XN--bcher-kva.example"]}
LOCALS = [
    "ann", "Ann+x", "ann-x", "ann+", "+ann", "ann-x+y", "joe", "o'brien", '"ann"', '"a\\nn"', "ju\u0308rgen",
    "a%bob.example", "bob.example!a", '"a@b"', "floors", ".ann", "ann=x", "ann_x",
]  # fmt: skip
STRANGE = [
    "ann", "ann@", "ann@[192.0.2.1]", "ann@bob.example.", "ann@bob..example", "a nn@bob.example", "a(x)@bob.example",
    "ann@bob.exam ple", "ann@" + "x" * 64 + ".example", "x" * 1000 + "@bob.example", "ann@floors", "ann@sub.default",
    "ann@b\u200bob.example", "ann@stra\u00dfe.example",
]  # fmt: skip
FILE_LOCALS = [
    "ann", "ann+x", "ann-x", "+ann", "o%27brien", "j%C3%BCrgen", "a%25bob.example", "bob.example%21a", "a%40b", "%2Eann",
    "ann%3Dx",
]  # fmt: skip
PEOPLE = [
    "ceo@alice.example", "CEO@Alice.example", "chair@board.alice.example", "x@news.example", "mu\u0308ller@alice.example",
    "ben@bob.example", "ann@b\u00fccher.example",
]  # fmt: skip
SENDER_PATTERNS = [
    "ceo@alice.example", "*@board.alice.example", "*@*.alice.example", "*@alice.example", "group:board",
    '"CEO"@alice.example', "M\u00dcLLER@alice.example", "*@*", "ceo+x@alice.example", "c*@alice.example", "*ann@*",
    "*@B\u00fccher.example", "c.o@alice.example", "ceo*example", "group:mixed",
]  # fmt: skip
RECIPIENT_PATTERNS = [
    "*@bob.example", "ann@*", "*@*.example", "group:friends", "J\u00fcrgen@*", "*+x@*", "*@b\u00fccher.example",
    "*@alice.example", "ann-x@*", "a*@b*",
]  # fmt: skip
LOGINS = ["ceo", "Ceo@Alice.example", "ann", "stra\u00dfe", "ceo+x"]
LOGIN_PATTERNS = ["login:CEO", "login:ann", "login:c*", "login:STRASSE", "login:*"]
CONTENT = [
    'subject_tag = "[secret]"', 'subject_tag = ["[up]", "[vs]"]', 'header = "X-Secret"', 'header = "X-Secret: yes*"',
    'attachment_name = "*.xlsx"', 'attachment_name = ["n*", "*.docx"]', 'header = ["X-Other: y*s", "X-None"]',
]  # fmt: skip
GROUPS = (
    'board = ["chair@board.alice.example", "<>"]\nfriends = ["joe@*", "*@carol.example"]\n'
    'mixed = ["*@news.example", "ceo@alice.example"]\n'
)
SIZES = (950, 3000, 40_000)
NAMES = [
    "", "Ann", '"Ann, of A"', "A. Nn", "=?utf-8?q?J=C3=BCrgen?=", "J\u00fcrgen", "(c (d)) Ann", '"x" y', "Ann\r\n of A",
]  # fmt: skip
DOUBTFUL_AUTHORS = [
    "Ann", "", "ann, of A <ann@alice.example>", ".Ann <ann@alice.example>", "<@a.example:ann@alice.example>",
    "ceo@alice.example <ann@alice.example>", "ann@alice..example", "ann@alice.example.", "undisclosed:;",
    "=?utf-8?q?a@b?= <ann@alice.example>", "=?utf-8?q?a=40b?= <ann@alice.example>", "=? <ann@alice.example>",
    "Ann <ann@alice.example", "Ann <ann@alice.example> x", '"a@b"@alice.example', "a\u200bnn@alice.example",
    "Ann <ann@alice.example>; ben@bob.example", "(((((((((x))))))))) ann@alice.example", "ann@\"alice.example\"",
    "Ann <>", "Ann\u2028 <ann@alice.example>", "Ann\x01 <ann@alice.example>", "Ann\r\n \r\n <ann@alice.example>",
    "ann@alice.example ceo@alice.example", '"m\u00fc"@alice.example', "\uff41nn@alice.example", "ann@alice,example",
    "Ann: ann@alice.example", "Ann\\\r\n <ann@alice.example>", "a b@alice.example", "Ann [x] <ann@alice.example>",
    "(=?utf-8?q?a)b?=) ann@alice.example", '"Ann <ann@alice.example>', "g: h: ann@alice.example;;",
]  # fmt: skip
CLEAR_AUTHORS = [
    "ann@alice.example <ann@alice.example>", "friends: ceo@alice.example, x@news.example;",
    ", ann@alice.example,,", "ceo(x)@alice.example (Ceo)", '"ceo"@alice.example', "ann@[192.0.2.1]", "(no one) <c.e.o@alice.example>",
    "a%b@alice.example", "SRS0=h=d=alice.example=ceo@news.example", "prvs=1a=ceo@alice.example", "((((((((x)))))))) ceo@alice.example",
    "Ann =?iso-8859-1?q?=FC?= =?utf-8?b?w7w=?= <ceo@alice.example>", "ceo+x@alice.example", "g:,ceo@alice.example,;, x@news.example",
    '"c\\eo"@alice.example', "\tceo@alice.example\t",
]  # fmt: skip


@dataclass
class MadePolicies:
    """Files by their names, and what else decides with them; `scopes` says what each is for."""

    scopes: dict[str, str]
    site: SiteSays
    files: dict[str, str] = field(default_factory=dict)


class Made(random.Random):
    """Files, mails and supplies by chance."""

    peers: Sequence[str] = ("bob", "carol")
    named_peers = 0.2
    sealing: Sequence[str] = ORDER[1:]

    def maybe(self, chance: float, text: str) -> str:
        return text if self.random() < chance else ""

    # --- files

    def policies(self) -> MadePolicies:
        """Without files as yet."""
        scopes = {f"{domain}.toml": "domain" for domain in DOMAINS if self.random() < 0.55}
        scopes |= {
            f"{domain}/{local}.toml": "person" for domain in DOMAINS for local in FILE_LOCALS if self.random() < 0.08
        }
        scopes |= {"example.toml": "domain"} if self.random() < 0.3 else {}
        scopes |= {"default.toml": "default"} if self.random() < 0.7 or not scopes else {}
        scopes |= {"floors.toml": "floors"} if self.random() < 0.6 else {}
        separators = self.choice(["+", "+", "+-", "-", "+=_", "=."])
        return MadePolicies(scopes, SiteSays(OWN, separators, takes_from=TAKES_FROM))

    def again(self, policies: MadePolicies, names: Iterable[str]) -> dict[str, str]:
        """These files, made anew, which the set has from now on."""
        made = {name: self.file(policies.scopes[name]) for name in names} | {"groups.toml": GROUPS}
        policies.files |= made
        return made

    def file(self, scope: str) -> str:
        if scope == "floors":
            return "\n".join(self.floor() for _ in range(self.randint(1, 3)))
        peer = self.maybe(self.named_peers, f'peer = "{self.choice(self.peers)}"\n')
        subdomains = self.maybe(0.5, "subdomains = true\n") if scope == "domain" else ""
        rules = "".join(self.rule() for _ in range(self.choice([0, 1, 1, 2, 4])))
        return peer + self.levels(0.2) + subdomains + self.settings() + self.days() + rules

    def levels(self, clear: float) -> str:
        if self.random() < clear:
            return 'levels = ["plaintext"]\n'
        found = self.sample(self.sealing, self.choice([1, 2, 2, 3, 4]))
        return f"levels = {found}\n".replace("'", '"')

    def settings(self, *, raises: bool = False) -> str:
        otherwise = self.choice(["hold", "refuse", "hold 1 h", "hold 30 min"])
        said = self.maybe(0.5, f'otherwise = "{otherwise}"\n')
        if raises:
            return said + self.maybe(0.3, 'priority = "normal"\n')
        limit = self.choice(['{ otp = "1 KiB" }', '{ otp = 100, pqc = "2 KiB", "pqc+aes" = 2000 }', "{ 2 = 100 }"])
        return said + self.maybe(0.3, f"max_size = {limit}\n") + self.maybe(0.3, 'priority = "low"\n')

    def days(self) -> str:
        today = datetime.now(UTC).date()
        until = [date(2020, 1, 31), today, today + timedelta(days=2), date(2999, 1, 2)]
        return self.maybe(0.15, f"until = {self.choice(until)}\n")

    def texts(self, patterns: Sequence[str]) -> str:
        found = self.sample(list(patterns), self.choice([1, 1, 2, 3]))
        return json.dumps(found[0] if len(found) == 1 and self.random() < 0.5 else found, ensure_ascii=False)

    def people(self, who: str) -> str:
        patterns = {"sender": [*SENDER_PATTERNS, *LOGIN_PATTERNS, "<>"], "recipient": RECIPIENT_PATTERNS}[who]
        return f"{self.choice(['', '', 'not_'])}{who} = {self.texts(patterns)}"

    def rule(self) -> str:
        every = [self.people("sender"), self.people("sender"), self.choice(CONTENT), self.choice(CONTENT[:4])]
        conditions = self.distinct(self.sample(every, self.choice([1, 1, 2])))
        levels = self.maybe(0.8, self.levels(0.0))
        settings = self.settings(raises=True) or ("" if levels else 'otherwise = "refuse"\n')
        return "[[when]]\n" + "\n".join(conditions) + f"\n{levels}{settings}{self.days()}"

    def floor(self) -> str:
        every = [self.people(who) for who in ("sender", "sender", "recipient", "recipient")]
        every += [self.choice(CONTENT)]
        found = self.distinct(self.sample(every, self.choice([1, 1, 2, 3])))
        levels = self.maybe(0.85, self.levels(0.0))
        settings = self.settings(raises=True) or ("" if levels else 'otherwise = "refuse"\n')
        return "[[floor]]\n" + "\n".join(found) + f"\n{levels}{settings}{self.days()}"

    def distinct(self, conditions: Iterable[str]) -> list[str]:
        """Without those of the same name."""
        named = {line.partition(" = ")[0]: condition for condition in conditions for line in condition.split("\n")}
        return list(dict.fromkeys(named.values()))

    # --- mails

    def spelled(self, address: str) -> str:
        """The address as it is, or in a form that stands for it, or that nobody should take for it."""
        local, _, domain = address.rpartition("@")
        forms = [
            address, address, address, address, f"{local}+x@{domain}", f"{local}-x@{domain}", f"{address}.", f"{address}..",
            f'"{local}"@{domain}', f"SRS0=h=d={domain}={local}@news.example", f"srs0-h=d={domain}={local}+x@news.example",
            f"SRS0+h=d={domain}={local}@news.example", f"SRS1=h=one.example==h=d={domain}={local}@news.example",
            f"SRS1-h=one.example=+h=d={domain}={local}@news.example", f"prvs=1a=={local}@{domain}", f"prvs=1a={local}@{domain}",
            f"PRVS=1a={local}=x@{domain}", f"prvs=={local}@{domain}", f"SRS0==d={domain}={local}@news.example",
            f"SRS0=h=d={domain}=a%{local}@news.example", f"SRS0=h=d={domain}.={local}@news.example",
            f"prvs=1a=SRS0=h=d={domain}={local}@news.example", f"SRS0=h=d={domain}=prvs=1a={local}@news.example",
            f"SRS0=h=d=a'b={local}@news.example", f"SRS0=h=d={domain}=@news.example",
            f"SRS1=h=one.example=h=d={domain}={local}@news.example", f"SRS0=h=d={domain}={local}=x@news.example",
            f"{local}%{domain}@news.example", f"{domain}!{local}@news.example", f'"{local}@{domain}"@news.example', f"{local}@[192.0.2.1]",
            f"{local}\u200b@{domain}", f"{local}@{domain}@news.example", local, f"{local}@.{domain}", f".{local}@{domain}",
            f"{local}@{domain.replace('.', '..', 1)}", f"@one.example:{address}", f"{local}@\uff41lice.example", f'"{local} x"@{domain}',
            f"{local}@" + domain.replace(".", "\u3002"), f'"\\{local}"@{domain}', f"{local}@{'x' * 1000}.example", f"+{local}@{domain}",
        ]  # fmt: skip
        return self.choice(forms)

    def sender(self) -> str:
        if self.random() < 0.12:
            return ""
        return self.choice(PEOPLE) if self.random() < 0.5 else self.spelled(self.choice(PEOPLE))

    def author(self) -> str:
        chance = self.random()
        if chance < 0.08:
            return self.choice(DOUBTFUL_AUTHORS)
        if chance < 0.2:
            return self.choice(CLEAR_AUTHORS)
        people = [self.choice(PEOPLE) for _ in range(self.choice([1, 1, 1, 2, 3]))]
        if chance < 0.3:
            people[-1] = self.spelled(people[-1])[:60]
        return ", ".join(f"{name} <{each}>" if (name := self.choice(NAMES)) else each for each in people)

    def recipient(self) -> str:
        if self.random() < 0.04:
            return self.choice(STRANGE)
        domain = self.choice(DOMAINS)
        return f"{self.choice(LOCALS)}@{self.choice([domain, domain.title(), *SPELLED.get(domain, [])])}"

    def facts(self) -> Facts:
        people = [self.recipient() for _ in range(self.randint(1, 4))]
        hidden = self.choice([0, 0, 900])
        return Facts(
            sender=self.sender(),
            recipients=tuple(dict.fromkeys(people)),
            octets=self.choice(SIZES) + hidden,
            hidden=hidden,
            waited=self.choice([10, 7200]),
            subject=self.choice(["hello", "[SECRET] x", "[up]", "[vs] [secret]"]),
            authors=tuple(self.author() for _ in range(self.choice([0, 1, 1, 1, 1, 1, 1, 1, 2]))),
            login=self.choice([None, "", "", *LOGINS]),
            fields=tuple(self.sample(["X-Secret: yes indeed", "X-Secret: no", "X-Other: yes"], self.randint(0, 1))),
            attachment=self.choice(["", "", "Budget.XLSX", "notes.txt"]),
            unclear=self.random() < 0.05,
        )

    def ability(self) -> Ability:
        cannot = [(self.choice(["otp", "pqc", "rsa"]), self.choice(["bob", "carol"])) for _ in range(3)]
        cannot += [("smime", "bob")]
        keys = {(peer, use): self.choice(["all", "all", "normal", "none"]) for peer in PEERS for use in ("otp", "aes")}
        return Ability(
            frozenset(self.sample(cannot, self.randint(0, 4))), frozenset(["bob"] if self.random() < 0.1 else []), keys
        )


def message_of(facts: Facts) -> bytes:
    """A message of these facts, whose size is exactly theirs."""
    received = format_datetime(datetime.now(UTC) - timedelta(seconds=facts.waited))
    lines = [f"Received: from a by b; {received}", *(f"From: {each}" for each in facts.authors)]
    lines += [f"Subject: {facts.subject}", *facts.fields, "MIME-Version: 1.0"]
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
    assert len(raw) <= facts.octets, (len(raw), facts)
    return raw + b"x" * (facts.octets - len(raw))
