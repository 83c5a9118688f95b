"""Fuzz targets for what administrators write: relay.toml, policy files, and what they expect of these.
Standard: a file is used whole or not at all; every fault is one line that begins with the file's name.
"""

from __future__ import annotations

import tempfile
import tomllib
from contextlib import suppress
from pathlib import Path

from relay.config import load_config
from relay.errors import ConfigError, Refuse, TryLater
from relay.levels import NAMES
from relay.policy.load import PolicyFolder, load_policies
from tests.system.fuzz.target import Target, check
from tests.testlib import hostile, reference
from tests.vectors.settings import CONFIG

ROOT = Path(__file__).parents[3]
PEERS = {"bob": ["bob.example"], "carol": ["carol.example", "bücher.example"]}
ADDRESSES = (
    "ann@alice.example",
    "ben@bob.example",
    "X@Carol.Example",
    "",
    "postmaster",
    '"a b"@bob.example',
    "é@bücher.example",
)
LEVELS = set(NAMES)

WORDS = (
    b"[", b"]", b"[[", b"]]", b"[[when]]\n", b"[peers.bob]\n", b"[kmes.x]\n", b"=", b" = ", b"\n", b"\r\n", b"\r", b'"', b"'", b'"""', b"'''", b"#",
    b"{", b"}", b",", b".", b"\\", b"\\u0000", b"\\U0010FFFF", b"\xff", b"\xef\xbb\xbf", b"\0", b"inf", b"nan", b"true", b"-1", b"0x1", b"1_0",
    b"9" * 5000, b"1979-05-27T07:32:00Z", b"a." * 300, b"[" * 300, b"levels = [1, 'aes']\n", b"levels = ['plaintext']\n", b'sender = "*@*"\n',
    b"[[test]]\n", b'expect = "held"\n', b"until = 2026-01-01\n", b'header = "A: =?utf-8?q?=FF?="\n', b'recipient = "["\n', b'subject = "(a+)+$"\n', b'max_size = { otp = "1 KiB" }\n', b'otherwise = "hold 1 h"\n', b'peer = "bob"\n', b'require = "aes"\n',
    b'"127.0.0.1:1"', b'"50 MiB"', b"*" * 50, b'"a\\nb" = 1\n', b'"\\n\\u001b[2J"', b"k" * 3000, b"\xc3\xa9",
)  # fmt: skip


POLICY_FILES = ("bob.example.toml", "floors.toml", "groups.toml")
FLOORS = (
    b'[[floor]]\nsender = ["group:law", "<>"]\nrecipient = "*@bob.example"\nlevels = ["otp"]\notherwise = "hold 1 h"\n'
)
GROUPS = b'law = ["law@alice.example", "*@law.alice.example"]\n"b-1" = "<>"\n'


def policy_seeds() -> list[bytes]:
    """The policy files that come with the relay, and small ones; each as every kind of file."""
    files = [path.read_bytes() for path in sorted((ROOT / "policies").rglob("*.toml"))]
    rules = b'levels = ["otp", 2]\notherwise = "refuse"\n\n[[when]]\nsender = "*@board.alice.example"\n'
    seeds = [*files, b'levels = ["aes"]\n', rules + b'levels = ["otp"]\n', b"", FLOORS, GROUPS]
    return [seed + b"\n" * more for seed in seeds for more in range(len(POLICY_FILES))]


def relay_seeds() -> list[bytes]:
    """What deploy/SETTINGS.md has, the same with everything set, and small ones."""
    first = (ROOT / "deploy" / "relay.toml").read_bytes()
    return [reference.as_it_stands().encode(), reference.with_everything_set().encode(), first, CONFIG.encode()]


def policy(data: bytes) -> None:
    """One policy file, floors or groups beside a good default; what is accepted decides about every address."""
    file = POLICY_FILES[len(data) % len(POLICY_FILES)]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "default.toml").write_bytes(b'levels = ["aes"]\n')
        (directory / file).write_bytes(data)
        try:
            policies = load_policies(directory, PEERS)
        except ConfigError as error:
            _check_faults(error, f"{directory}/{file}")
            return
    for sender in ADDRESSES:
        for recipient in ADDRESSES:
            with suppress(TryLater, Refuse):
                decision = policies.decide(sender, recipient)
                check(decision.levels and LEVELS.issuperset(decision.levels), "a decision without a level")
                clear = "plaintext" in decision.levels
                check(not clear or b"plaintext" in data, "plaintext is allowed by a file that does not say so")


def relay(data: bytes) -> None:
    """A whole relay.toml."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "relay.toml"
        path.write_bytes(data)
        try:
            config = load_config(path)
        except ConfigError as error:
            _check_faults(error, str(path))
            return
    check(config.outgoing or config.incoming, "a relay with nothing to serve")
    check(tomllib.loads(data.decode()), "what is no TOML was accepted")


def tests_seeds() -> list[bytes]:
    """Files of tests, of which some fail."""
    mail = b'[[test]]\nsender = "ann@alice.example"\nrecipient = "ben@bob.example"\n'
    asked = (
        b'subject = "[secret]"\nheader = ["X-Secret: yes"]\nattachments = ["a.xlsx", "b: image/png"]\nsize = "1 MiB"\n'
    )
    more = b'expect = ["aes", 1]\npeer = "bob"\nfile = "default.toml"\notherwise = "hold"\nuntil = 2099-12-31\n'
    null = mail.replace(b"ann@alice.example", b"<>") + b'expect = "held"\n'
    return [
        mail + b'expect = "aes"\n',
        mail + asked + b'expect = "refused"\n',
        mail + asked + more,
        null * 3,
        FLOORS + mail,
    ]


def tests(data: bytes) -> None:
    """A tests.toml beside good policies: it is read and tried, or it says what is wrong, as a test that fails does."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "default.toml").write_bytes(
            b'levels = ["aes"]\n[[when]]\nsubject_tag = "[secret]"\nlevels = ["otp"]\n'
        )
        (directory / "tests.toml").write_bytes(data)
        try:
            policies = PolicyFolder(directory, PEERS).read_tested()
        except ConfigError as error:
            _check_faults(error, f"{directory}/tests.toml")
            return
    check(set(policies.files) == {"default.toml"}, "what is expected of policies became one of them")


def _check_faults(error: ConfigError, path: str) -> None:
    check(error.problems, "a file is refused without a reason")
    for problem in error.problems:
        check(problem.startswith(path), f"a fault that does not begin with the file's name: {problem!r}")
        check("\n" not in problem and "\r" not in problem, f"a fault of several lines: {problem!r}")
        check(len(problem) < 5000, f"a fault of {len(problem)} characters")


POLICY = Target("policy", policy, policy_seeds, WORDS, hostile.FILES, seconds_a_mib=4)
TESTS = Target("tests", tests, tests_seeds, WORDS, hostile.FILES, seconds_a_mib=4)
RELAY = Target("relay", relay, relay_seeds, WORDS, hostile.FILES, seconds_a_mib=4)
