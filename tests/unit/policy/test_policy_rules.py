"""Rules: what each decides for which mail, that a message only ever raises, and what is said about a wrong rule.
Standard: tests/data/rules.toml, a table that an administrator can read, and policies/README.md.
"""

from __future__ import annotations

import dataclasses
import time
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from relay.errors import ConfigError
from relay.files import toml
from relay.formats.addresses import MAX_ADDRESSES
from relay.policy.content import MessageFacts
from relay.policy.decide import Decision, PolicySet
from relay.policy.load import load_policies
from relay.policy.patterns import Glob
from relay.policy.units import parse_duration
from tests.testlib.long import sized
from tests.testlib.policy_files import PEERS, write
from tests.testlib.speed import seconds

TABLE = tomllib.loads((Path(__file__).parents[2] / "data" / "rules.toml").read_text(encoding="utf-8"))
DECISIONS = Path(__file__).parents[2] / "data" / "decisions.toml"
SENDER = "ann@alice.example"


def message(row: Mapping[str, Any]) -> bytes:
    """The mail of a row of the table."""
    if "raw" in row:
        return str(row["raw"]).encode()
    lines = [f"Subject: {row['subject'].replace('LONG', 'x' * 20_000)}"] if "subject" in row else []
    lines += row.get("header", [])
    if not any(line.lower().startswith("from:") for line in lines):
        lines.append("From: x@y.example")
    body = row.get("body", "text") + "\r\n"
    if "attachment" in row:
        kind, _, name = row["attachment"].partition(" ")
        lines += ["MIME-Version: 1.0", 'Content-Type: multipart/mixed; boundary="b"']
        body = (
            "--b\r\n\r\ntext\r\n"
            f'--b\r\nContent-Type: {kind}\r\nContent-Disposition: attachment; filename="{name}"\r\n\r\nx\r\n--b--\r\n'
        )
    text = ("\r\n".join(["X: y", *lines]) + "\r\n\r\n" + body).encode()
    octets: bytes = text
    return octets


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> PolicySet:
    """The files of the table."""
    return load_policies(write(tmp_path_factory.mktemp("rules"), TABLE["files"]), PEERS)


@pytest.mark.parametrize("row", TABLE["decision"], ids=lambda row: row["why"])
def test_the_table_of_rules(policies: PolicySet, row: dict[str, Any]) -> None:
    recipient = f"x@{row['file'].removesuffix('.toml')}"
    decision = policies.decide(row.get("from", SENDER), recipient, MessageFacts(message(row)))
    seen = dataclasses.asdict(decision) | {"levels": list(decision.levels), "max_size": dict(decision.max_size)}
    expected = {key: value for key, value in row.items() if key in seen}
    assert {key: seen[key] for key in expected} == expected
    assert Path(decision.source).name == row["file"]


def test_the_tables_have_at_least_150_decisions() -> None:
    with DECISIONS.open("rb") as file:
        assert len(tomllib.load(file)["decision"]) + len(TABLE["decision"]) >= 150


def test_a_decision_names_the_line_of_the_rules_levels(policies: PolicySet) -> None:
    decision = policies.decide("chair@board.alice.example", "x@board.example")
    assert TABLE["files"]["board.example.toml"].splitlines()[decision.line - 1] == 'levels = ["otp"]'
    assert policies.decide("x@lab.alice.example", "x@board.example").line == 1


def test_without_a_message_rules_apply_that_ask_of_the_envelope_alone(policies: PolicySet) -> None:
    assert policies.decide("a@alice.example", "x@both.example").rule == 0
    assert policies.decide("a@alice.example", "x@both.example").looks_inside
    assert policies.decide("ceo@alice.example", "x@board.example").levels == ("otp", "aes")


def test_an_explanation_says_of_each_rule_why_it_did_not_apply(policies: PolicySet) -> None:
    explanation = policies.explain(SENDER, "x@tag.example", MessageFacts(b"Subject: x\r\nX-Seal-Strongly: y\r\n\r\n"))
    assert [(look.rule, look.applies, look.because) for look in explanation.rules] == [
        (1, False, "the subject does not have '[secret]'"),
        (2, False, "the subject does not have '[vs-nfd]' or '[streng geheim]'"),
        (3, False, "no header field is 'X-Classification: *secret*'"),
        (4, True, "raises what holds without it"),
    ]
    assert [look.line for look in explanation.rules] == [4, 7, 10, 14]


def test_the_reasons_name_what_is_there(policies: PolicySet) -> None:
    content = MessageFacts(b"From: x@y.example\r\n\r\nabc")
    named = policies.explain("x@alice.example", "x@both.example", content).rules
    assert [look.because for look in named] == ["the sender is not 'a@alice.example'"]
    nothing = policies.explain(SENDER, "x@parts.example").rules
    assert {look.because for look in nothing} == {"it looks into the message, and there is none"}


# --- properties ----------------------------------------------------------------------------------------

HEADERS = st.sampled_from(
    [b"Content-Type", b"Content-Disposition", b"Content-Transfer-Encoding", b"Subject", b"From", b"X", b"Received"]
)
VALUES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [
            b"multipart/mixed; boundary=a",
            b"multipart/digest; boundary*=''a",
            b"message/rfc822",
            b"a/b; name*0*=x''%",
            b"=?x?b?=?=",
            b"; Thu, 99 Foo 2026",
            b"=?utf-8?b?!?=",
            b"attachment; filename*=bogus'x'y",
        ]
    ),
)
LINES = st.one_of(
    st.builds(lambda name, value: name + b": " + value.replace(b"\n", b"").replace(b"\r", b""), HEADERS, VALUES),
    st.sampled_from([b"", b"--a", b"--a--", b"--a ", b"text"]),
)


@settings(max_examples=sized(200, 4000), deadline=None)
@given(lines=st.lists(LINES, max_size=25))
def test_any_message_can_be_asked_anything(lines: list[bytes]) -> None:
    content = MessageFacts(b"\r\n".join(lines))
    assert (content.names is None) == ("the attachments" in content.doubts)
    assert all(address.domain for address in content.authors or ())
    assert content.waited(datetime.now(UTC)) is None or content.waited(datetime.now(UTC)) is not None
    assert all(isinstance(value, str) for name in ("subject", "x", "from") for value in content.values(name) or ())


@given(pattern=st.text(alphabet="ab*", max_size=8), text=st.text(alphabet="ab", max_size=10))
def test_a_pattern_matches_as_in_a_shell(pattern: str, text: str) -> None:
    import fnmatch

    assert Glob.of(pattern).matches(text) == fnmatch.fnmatchcase(text, pattern)


# --- messages that shall cost time or memory -----------------------------------------------------------------


def test_a_message_of_many_or_deep_parts_is_not_followed_to_its_end() -> None:
    many = MessageFacts(b"Content-Type: multipart/mixed; boundary=a\r\n\r\n" + b"--a\r\n\r\n" * 100_000)
    assert many.names is None
    deep = b"".join(b"Content-Type: multipart/mixed; boundary=%d\r\n\r\n--%d\r\n" % (n, n) for n in range(100))
    assert MessageFacts(deep).names is None


def with_names(names: list[str]) -> MessageFacts:
    """A large message, whose parts have these names."""
    parts = (f"--b\r\nContent-Disposition: attachment; filename={name}.docx\r\n\r\nx\r\n" for name in names)
    head = "Content-Type: multipart/mixed; boundary=b\r\n\r\n"
    return MessageFacts((head + "".join(parts) + "--b\r\n\r\n").encode() + b"x" * 10_000_000 + b"\r\n--b--\r\n")


def test_many_patterns_are_not_compared_with_many_names_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patterns = ", ".join(f'"*plan-{number:04}*.docx"' for number in range(1000))
    text = f'levels = ["aes"]\n[[when]]\nattachment_name = [{patterns}]\nlevels = ["otp"]\n'
    policies = load_policies(write(tmp_path, {"default.toml": text}), PEERS)
    compared, matches = list[str](), Glob.matches

    def counted(glob: Glob, text: str) -> bool:
        compared.append(text)
        return matches(glob, text)

    monkeypatch.setattr(Glob, "matches", counted)
    names = [f"plan-9{number:03}" for number in range(200)]

    def levels(content: MessageFacts) -> tuple[str, ...]:
        decision = policies.decide(SENDER, "ben@bob.example", content)
        assert isinstance(decision, Decision)
        return decision.levels

    assert levels(with_names(names)) == ("aes",)
    assert not compared
    assert levels(with_names([*names, "plan-0999-b"])) == ("otp",)
    assert len(compared) <= len(names) + 1
    # Names that are longer together than any person gives to files are not compared, and count as fitting.
    assert levels(with_names([f"{name}{'x' * 200}" for name in names])) == ("otp",)


def test_a_pattern_of_many_stars_takes_no_time() -> None:
    assert not Glob.of("*a" * 400 + "*b").matches("a" * 1000)


def test_the_time_waited_is_that_since_the_topmost_received_field() -> None:
    now = datetime(2026, 11, 25, 12, 0, 0, tzinfo=UTC)
    received = b"Received: from a by b;\r\n\tWed, 25 Nov 2026 12:30:00 +0100\r\nReceived: x; Tue, 1 Jan 2019 00:00:00 +0000\r\n"
    assert MessageFacts(received + b"\r\n").waited(now) == 1800
    assert MessageFacts(b"Date: Tue, 1 Jan 2019 00:00:00 +0000\r\n\r\n").waited(now) is None
    assert MessageFacts(b"Received: no date\r\n\r\n").waited(now) is None
    assert MessageFacts(b"Received: x; Wed, 25 Nov 2026 12:30:00 +0000\r\n\r\n").waited(now) == 0


def test_authors_are_those_of_all_from_fields_folded() -> None:
    header = (
        b'From: "ceo@bob.example" <x@list.example>, (a@b) Ann\r\n <Ann@Alice.example>\r\nFROM : second@bob.example\r\n'
    )
    content = MessageFacts(header + b"Sender: Boss <boss@[192.0.2.1]>\r\n\r\n")
    assert content.authors == (("ann", "alice.example"), ("second", "bob.example"), ("x", "list.example"))
    assert content.senders == (("boss", "[192.0.2.1]"),)
    assert MessageFacts(b"Subject: x\r\n\r\n").authors == ()


@pytest.mark.parametrize(
    "field",
    [b"From: Ann", b"From:", b"From: a@b_c!d", b"From: a@b.example\r\nFrom: Ann", b"From: a@b.example\r\n" * 500],
)
def test_authors_in_doubt_are_not_guessed(field: bytes) -> None:
    assert MessageFacts(field + b"\r\n\r\n").authors is None


@pytest.mark.parametrize(("text", "seconds"), [("30 min", 1800), ("4h", 14400), ("2 d", 172800), (90, 90)])
def test_times_are_read_as_people_write_them(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


# --- wrong rules ---------------------------------------------------------------------------------------------

RULE = 'levels = ["aes"]\n[[when]]\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (RULE + 'levels = ["otp"]', ":2: when.0: a rule needs a condition: sender, not_sender, subject_tag,"),
        (RULE + 'sender = "a@b.example"', ":2: when.0: a rule needs a setting that it changes, for instance levels"),
        (RULE + 'sendr = "a@b"\nlevels = [1]', ":3: when.0.sendr: unknown setting; did you mean 'sender'?"),
        (RULE + 'sender = "bob.example"\nlevels = [1]', ':3: when.0.sender: \'bob.example\': write an address, "*@'),
        (RULE + 'sender = []\nlevels = [1]', ":3: when.0.sender: write a text in quotes, or a list of them"),
        (RULE + 'sender = "x@a b"\nlevels = [1]', ":3: when.0.sender: 'a b' is not a mail domain"),
        (RULE + 'header = "X Y: z"\nlevels = [1]', ":3: when.0.header: 'X Y: z': write a field name"),
        (RULE + 'header = "X-*: z"\nlevels = [1]', ":3: when.0.header: 'X-*: z': write a field name"),
        (RULE + 'attachment_type = "pdf"\nlevels = [1]', ":3: when.0.attachment_type: unknown setting; did you mean 'attachment_name'"),
        (RULE + 'recipient = "x@bob.example"\nlevels = [1]', ":3: when.0.recipient: unknown setting; a rule is for the recipients of its file"),
        (RULE + 'login = "ann"\nlevels = [1]', ':3: when.0.login: unknown setting; write sender = "login:NAME"'),
        ('levels = ["aes"]\n[when]\nsender = "a@b"\nlevels = [1]', ":2: when: write its name in double brackets"),
        ('levels = ["aes"]\n[[rule]]\nsender = "a@b"\nlevels = [1]', ":2: rule: unknown setting; rules are [[when]] tables"),
        ('levels = ["aes"]\n[[floor]]\nsender = "a@b"\nlevels = [1]', ":2: floor: unknown setting; [[floor]] tables stand in floors.toml"),
        ('levels = ["clear"]', ":1: levels: 'clear' is not a level; did you mean 'plaintext'?"),
        ('levels = ["aes"]\nkem = ["hqc-256"]', ":2: kem: unknown setting; known here: levels, max_size,"),
        ('levels = ["aes"]\nuntil = "2027-01-31"', ":2: until: write a day without quotes"),
        (RULE + 'not_sender = ["login:a", "login:b"]\nlevels = [1]', ":3: when.0.not_sender: names of users alone leave nobody out"),
        (RULE + 'subject_tag = "[x]"\nlevels = ["pqc"]', ":4: when.0.levels: a rule only raises, and the file says as much"),
        (RULE + 'sender = "a@b"\notherwise = "hold"', ":4: when.0.otherwise: a rule only raises, and the file says as much"),
        (RULE + 'sender = "a@b"\nlevels = ["plaintext"]', ':2: when.0: a rule only raises, and "plaintext" is the lowest'),
        (RULE + 'subject_tag = "[x]"\npriority = "low"', ':2: when.0: a rule only raises, and priority = "low" is the lowest'),
        (RULE + 'subject_tag = "[x]"\nmax_size = { otp = 5 }', ":4: when.0.max_size: unknown setting"),
        (RULE + 'author = "a@b"\nlevels = [1]', ":3: when.0.author: unknown setting"),
        (RULE + 'sender = "login:"\nlevels = [1]', ":3: when.0.sender: 'login:': write an address"),
        ('levels = ["aes"]\nmax_size = "1 MiB"', ":2: max_size: write a size for at least one level"),
        (RULE + 'sender = "a@b"\npeer = "bob"', ":4: when.0.peer: unknown setting; this is for the file, and stands above its first [[when]]"),
        ('levels = ["aes"]\nmax_size = { opt = 5 }', ":2: max_size: 'opt' is not a level; did you mean 'otp'?"),
        ('levels = ["aes"]\nmax_size = { aes = 0 }', ":2: max_size: aes: write a size such as"),
        ('levels = ["aes"]\nmax_size = { plaintext = 1 }', ":2: max_size: a size for plaintext decides nothing"),
        ('levels = ["aes"]\notherwise = "hold 5 weeks"', ':2: otherwise: write a time such as "30 min", "4 h" or "2 d"'),
        ('levels = ["aes"]\notherwise = "hold 31 d"', ":2: otherwise: write a time such as"),
        ('levels = ["aes"]\npriority = "urgent"', ":2: priority: input should be 'low' or 'normal'"),
        ('levels = ["aes"]\nrequire = "plaintext"', ':2: require: "plaintext" requires nothing; leave the setting out'),
        ('levels = ["aes"]\nrequire = ["pqc", "aes"]', ":2: require: write one level, the weakest that mail may arrive with"),
        ('levels = ["aes"]\nrequire = "pqs"', ":2: require: 'pqs' is not a level; did you mean 'pqc'?"),
        ('levels = ["aes"]\nrequire = ""\nunprotected = "mark"', ":2: require: '' is not a level; known: otp, aes,"),
        ('levels = ["aes"]\nunprotected = "mark"', ":2: unprotected: without `require` nothing is unprotected"),
        (
            'levels = ["aes"]\nrequire = "aes"\nunprotected = "drop"',
            ":3: unprotected: input should be 'refuse', 'quarantine' or 'mark'",
        ),
    ],
)  # fmt: skip
def test_a_wrong_rule_is_named_with_file_line_and_remedy(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_policies(write(tmp_path, {"bob.example.toml": text}), PEERS)
    [heard] = caught.value.problems
    assert heard.removeprefix(f"{tmp_path}/").startswith(f"bob.example.toml{said}"), heard


@pytest.mark.parametrize(
    "text",
    [
        'levels = [2]\n[[when]]\nsender = "a@b"\nlevels = [1]\notherwise = "refuse"\n[[when]] # x\nsender = "c@d"\notherwise = "refuse"\n',
        '# levels = [2]\n  levels = [2]\nwhen = [{ sender = "a@b", levels = [1] }]\n',
        'levels = [2]\n[["when"]]\nsender = "a@b"\n"levels" = [1]\n',
        "levels = [2]\r\n\r\n[[when]]\r\nsender = 'a@b'\r\nlevels = [1]\r\n",
        '"levels" = [\n 2,\n]\n[[ when ]]\nsender = """\na@b"""\nlevels = [1]\n',
        'levels = [\n2\n]\n[[when]]\nlevels = [1]\nsubject_tag = "x\\n[[when]]"\nsender = "a@b"\n',
    ],
)
def test_lines_are_those_that_a_toml_reader_finds(tmp_path: Path, text: str) -> None:
    text = text.replace("\na@b'''", "a@b'''").replace('\na@b"""', 'a@b"""')
    file = load_policies(write(tmp_path, {"default.toml": text}), PEERS).files["default.toml"]
    assert file.line == toml.line_of(text, ("levels",))
    expected = [toml.line_of(text, ("when", number, "levels")) for number in range(len(file.policy.when))]
    assert list(file.rule_lines) == expected


def test_a_thousand_rules_load_in_no_time_and_more_are_refused(tmp_path: Path) -> None:
    rule = '[[when]]\nsender = "a@b"\nlevels = [1]\n'
    policies = load_policies(write(tmp_path, {"default.toml": "levels = [2]\n" + rule * 1000}), PEERS)
    assert policies.decide("x@y", "x@y").rule == 0
    with pytest.raises(ConfigError, match="1000 items"):
        load_policies(write(tmp_path, {"default.toml": "levels = [2]\n" + rule * 1001}), PEERS)


TAG = '[[when]]\nsubject_tag = "[M\u00fcller]"\nlevels = ["otp"]\n'
SUBJECTS = {
    "composed": "[m\u00fcller]".encode(),
    "decomposed, as on a Mac": "[mu\u0308ller]".encode(),
    "in Latin-1, which no field may be": b"[m\xfcller]",
    "decomposed in an encoded word": b"=?utf-8?q?=5Bmu=CC=88ller=5D?=",
    "behind octets of no character set": b"\xff [m\xc3\xbcller]",
}


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
def test_a_tag_with_an_umlaut_is_found_however_it_is_written(tmp_path: Path, subject: bytes) -> None:
    policies = load_policies(write(tmp_path, {"bob.example.toml": 'levels = ["aes"]\n' + TAG}), PEERS)
    content = MessageFacts(b"Subject: " + subject + b"\r\n\r\nx\r\n")
    assert policies.decide(SENDER, "ben@bob.example", content).levels == ("otp",)


def test_a_tag_that_is_written_decomposed_is_found_composed(tmp_path: Path) -> None:
    rule = TAG.replace("\u00fc", "u\u0308")
    policies = load_policies(write(tmp_path, {"bob.example.toml": 'levels = ["aes"]\n' + rule}), PEERS)
    content = MessageFacts("Subject: [M\u00dcLLER]\r\n\r\n".encode())
    assert policies.decide(SENDER, "ben@bob.example", content).levels == ("otp",)


@pytest.mark.parametrize(
    ("condition", "fits", "not_fits"),
    [
        ('subject_tag = "*secret*"', b"Subject: top secret plan", b"Subject: plan"),
        ('subject_tag = "[vs-*]"', b"Subject: Re: [VS-NfD] plan", b"Subject: vs-nfd [plan]"),
        ('header = "X-Class: *secret*"', b"X-Class: top secret plan", b"X-Class: plan"),
        ('attachment_name = "*secret*"', b"Content-Disposition: inline; filename=topsecret.txt", b"X-Class: secret"),
        ('sender = "*@board.example"', b"From: x@board.example", b"From: x@bank.example"),
    ],
)
def test_a_star_means_the_same_in_every_condition(tmp_path: Path, condition: str, fits: bytes, not_fits: bytes) -> None:
    policies = load_policies(write(tmp_path, {"default.toml": f'{RULE}{condition}\nlevels = ["otp"]\n'}), PEERS)
    decisions = [policies.decide(SENDER, "x@y.example", MessageFacts(each + b"\r\n\r\n")) for each in (fits, not_fits)]
    assert [each.levels for each in decisions] == [("otp",), ("aes",)]


IN_DOUBT = {
    "author": ('sender = "ceo@alice.example"', b"From: Ann", "From is in doubt (a name stands without an address)"),
    "subject": ('subject_tag = "[x]"', b"Subject: =?x-none?q?y?=", "Subject is in doubt (it is in a character set that is not known here)"),
    "header": ('header = "X-Class: x"', b"X-Class: a\x07b", "X-Class is in doubt (it has control characters, or others that programs show differently)"),
    "parts": ('attachment_name = "*.x"', b"Content-Type: multipart/mixed", "the attachments are in doubt (it has parts, and no boundary of them or several)"),
    "no field": ('subject_tag = "[x]"', b"X: y\r\nno field", "Subject is in doubt (a line of the header is no field)"),
    "sender": ('sender = "ceo@alice.example"', b"X: y", "the sender is in doubt"),
}  # fmt: skip


@pytest.mark.parametrize(("condition", "header", "cause"), IN_DOUBT.values(), ids=IN_DOUBT)
def test_a_decision_says_what_was_in_doubt_and_what_it_would_be_without(
    tmp_path: Path, condition: str, header: bytes, cause: str
) -> None:
    floors = f'[[floor]]\n{condition}\nlevels = ["otp"]\n'
    files = {"default.toml": 'levels = ["aes", "pqc"]\n', "floors.toml": floors}
    policies = load_policies(write(tmp_path, files), PEERS)
    sender = "any%body@alice.example" if cause.startswith("the sender") else "ann@alice.example"
    content = MessageFacts(header + b"\r\n\r\n")
    decision = policies.decide(sender, "x@y.example", content)
    assert decision.levels == ("otp",)
    assert str(decision.doubt) == (
        f"{cause}, which counts as matching: levels: otp instead of aes, pqc "
        f"(without that doubt: {tmp_path}/default.toml:1)"
    )
    explained = policies.explain(sender, "x@y.example", content)
    assert explained.floors[0].because == f"raises what holds without it, as {cause}"


@pytest.mark.parametrize("first", ["author", "header"])
def test_from_is_read_as_text_and_as_authors(tmp_path: Path, first: str) -> None:
    rules = {"author": 'sender = "ceo@alice.example"', "header": 'header = "From: *ceo*"'}
    each = [rules.pop(first), *rules.values()]
    text = "".join(f'[[when]]\n{condition}\nlevels = ["otp"]\n' for condition in each)
    policies = load_policies(write(tmp_path, {"default.toml": 'levels = ["aes"]\n' + text}), PEERS)
    for field, level in ((b"ceo <ann@alice.example>", "otp"), (b"ceo@alice.example", "otp"), (b"a@b.example", "aes")):
        content = MessageFacts(b"From: " + field + b"\r\n\r\n")
        assert policies.decide(SENDER, "x@y.example", content).levels == (level,)


def test_what_is_in_doubt_and_changes_nothing_is_not_named(tmp_path: Path) -> None:
    rule = RULE + 'subject_tag = "[x]"\nlevels = ["otp"]\n[[when]]\nheader = "X: y"\nlevels = ["otp"]\n'
    policies = load_policies(write(tmp_path, {"default.toml": rule}), PEERS)
    content = MessageFacts(b"Subject: =?x-none?q?y?=\r\nX: y\r\n\r\n")
    assert policies.decide(SENDER, "x@y.example", content).doubt is None


HOSTILE = {
    "encoded words": b"Subject: " + b"=?utf-8?q?b?= " * 100_000 + b"\r\n\r\n",
    "many subjects": b"Subject: =?utf-8?q?b?=\r\n" * 15_000 + b"\r\n",
    "parentheses in From": b"From: " + b"(" * 1_000_000 + b"\r\n\r\n",
    "quotes in From": b"From: " + b'"\\' * 500_000 + b"\r\n\r\n",
    "one long author": b"From: " + b"a" * 1_000_000 + b"@b\r\n\r\n",
    "lines like a boundary": b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"\r\n--bx" * 2_000_000,
    "boundaries in boundaries": b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (depth, depth) for depth in range(8)
    )
    + b"\r\n-" * 3_000_000,
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_no_message_takes_long(name: str) -> None:
    content = MessageFacts(HOSTILE[name])
    began = time.process_time()
    content.read()
    assert len(content.authors or ()) <= 1
    assert content.values("subject") is None or len(content.values("subject") or ()) <= 1
    content.waited(datetime.now(UTC))
    assert time.process_time() - began < 2.0  # some hundredths here; what is not linear takes minutes


def test_of_more_authors_than_anybody_has_nobody_is_guessed() -> None:
    many = (b"a%d@b.example" % number for number in range(MAX_ADDRESSES + 1))
    assert MessageFacts(b"".join(b"From: %s\r\n" % each for each in many) + b"\r\n").authors is None


@pytest.mark.parametrize("name", [b"From", b"Sender"])
def test_marks_that_could_be_put_in_order_for_seconds_are_not_looked_at(name: bytes) -> None:
    message = name + b": a@" + "\u0315\u0300".encode() * 250_000 + b".example\r\n\r\n"

    def look() -> None:
        content = MessageFacts(message)
        assert None in (content.authors, content.senders)

    assert seconds(look) < 0.1


def test_more_fields_of_one_name_than_are_looked_at_count_as_matching(tmp_path: Path) -> None:
    text = 'levels = ["pqc"]\n[[when]]\nheader = "X-Secret: yes"\nlevels = ["aes"]\n'
    policies = load_policies(write(tmp_path, {"default.toml": text}), PEERS)
    few, many = (MessageFacts(b"X-Secret: no\r\n" * number + b"\r\n") for number in (20, 21))
    assert policies.decide(SENDER, "x@y.example", few).levels == ("pqc",)
    assert policies.decide(SENDER, "x@y.example", many).levels == ("aes",)
