"""What may stand in policy files, and what is said about a wrong setting.
Standard: policies/README.md.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from relay.errors import ConfigError
from relay.levels import LEVELS, NAMES
from relay.policy.load import load_policies
from tests.testlib.policy_files import AES, fault, faults, write

KNOWN = f"known: {', '.join(NAMES)}, or 1 to {len(LEVELS)}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ": levels: missing; this setting is required"),
        ("# nothing\n", ": levels: missing; this setting is required"),
        ("levels = []", ':1: levels: write a list with at least one level, for instance ["otp", "aes"]'),
        ('levels = "aes"', ':1: levels: write a list with at least one level, for instance ["otp", "aes"]'),
        ('levels = ["aess"]', ":1: levels: 'aess' is not a level; did you mean 'aes'?"),
        (
            'levels = ["any-quantum"]',
            """:1: levels: 'any-quantum' is not a level; any level that uses a quantum key is ["otp", "aes", "pqc+aes"]""",
        ),
        (
            'levels = ["QKD"]',
            """:1: levels: 'QKD' is not a level; any level that uses a quantum key is ["otp", "aes", "pqc+aes"]""",
        ),
        ('levels = ["AES"]', ":1: levels: 'AES' is not a level; did you mean 'aes'?"),
        (
            'levels = ["zip"]',
            f":1: levels: 'zip' is not a level; {KNOWN}",
        ),
        ("levels = [99]", f":1: levels: 99 is not a level; {KNOWN}"),
        ("levels = [0]", f":1: levels: 0 is not a level; {KNOWN}"),
        (
            "levels = [true]",
            f":1: levels: True is not a level; {KNOWN}",
        ),
        ("levels = [1.0]", f":1: levels: 1.0 is not a level; {KNOWN}"),
        ('levels = ["1"]', f":1: levels: '1' is not a level; {KNOWN}"),
        ("levels = [[1]]", f":1: levels: [1] is not a level; {KNOWN}"),
        ('levels = ["aes", 2]', ":1: levels: 'aes' is listed twice; leave one out"),
        (
            'otherwise = "hold"\nlevels = ["aes", "plaintext"]',
            (
                ':2: levels: "plaintext" stands alone: levels = ["plaintext"] lets this mail out in clear; '
                "leave it out to have the mail sealed"
            ),
        ),
        (AES + 'level = ["otp"]', ":2: level: unknown setting; did you mean 'levels'?"),
        (AES + '\notherwize = "hold"', ":3: otherwize: unknown setting; did you mean 'otherwise'?"),
        (
            AES + "[[rules]]\nx = 1",
            ":2: rules: unknown setting; rules are [[when]] tables",
        ),
        (
            AES + 'otherwise = "bounce"',
            ':2: otherwise: write "hold", "refuse", or how long it is held, such as "hold 12 h"',
        ),
        (AES + 'peer = "bobb"', ":2: peer: no peer 'bobb'; did you mean 'bob'?"),
        (AES + 'peer = "zoe"', ":2: peer: no peer 'zoe'; configured: bob, carol"),
        (AES + "peer = 1", ":2: peer: input should be a valid string"),
        (AES + 'subdomains = "yes"', ":2: subdomains: input should be a valid boolean"),
        (AES + "levels = [1]", ":2: not TOML: cannot overwrite a value"),
        ("levels = [", ":1: not TOML: invalid value"),
    ],
)
def test_a_wrong_setting_is_named_with_file_line_and_remedy(tmp_path: Path, text: str, said: str) -> None:
    heard = fault(tmp_path, text)
    heard = re.sub(r":(\d+):\d+: not TOML", r":\1: not TOML", heard)  # the column depends on the Python
    assert heard.lower() == f"bob.example.toml{said}".lower()


@pytest.mark.parametrize(("name", "scope"), [("default.toml", "default"), ("bob.example/x.toml", "person")])
def test_only_the_file_of_a_domain_has_subdomains(tmp_path: Path, name: str, scope: str) -> None:
    said = fault(tmp_path, AES + "subdomains = true", name)
    assert said == (f"{name}:2: subdomains: only for the file of a domain, and this one is for a {scope}; leave it out")


def test_bad_encodings_and_giant_files_are_errors(tmp_path: Path) -> None:
    (tmp_path / "bob.example.toml").write_bytes(b"levels = [2]\n# caf\xe9\n")
    (tmp_path / "carol.example.toml").write_bytes(b"#" * 2 * 1024 * 1024)
    (tmp_path / "default.toml").write_bytes(b"\xef\xbb\xbflevels = [2]\n")
    assert faults(tmp_path) == [
        "bob.example.toml:2: not UTF-8 (byte 0xe9)",
        "carol.example.toml: larger than 1048576 bytes; no such file needs to be",
        "default.toml:1: begins with a byte order mark; save it as UTF-8 without one",
    ]


def test_every_fault_of_every_file_is_told_at_once(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "bob.example.toml": 'levels = ["aess"]\npeer = "nobody"\nquantom = "off"\n',
            "bob.example/Alice.toml": AES,
            "default.toml": "",
            "carol.example.toml": AES,
        },
    )
    assert [said.split(": ")[0] for said in faults(tmp_path)] == [
        *("bob.example.toml:1", "bob.example.toml:2", "bob.example.toml:3"),
        *("bob.example/Alice.toml", "default.toml"),
    ]


def test_peers_that_share_a_domain_or_have_none_are_errors(tmp_path: Path) -> None:
    write(tmp_path, {"default.toml": AES})
    peers = {"bob": ["bücher.example"], "carol": ["xn--bcher-kva.example"], "dave": ["dave example"]}
    with pytest.raises(ConfigError) as caught:
        load_policies(tmp_path, peers)
    assert caught.value.problems == [
        "peer 'carol': domain 'xn--bcher-kva.example' already belongs to peer 'bob'",
        "peer 'dave': domains: 'dave example' is not a mail domain",
    ]
