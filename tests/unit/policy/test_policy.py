"""The policies that come with the relay, and policies/README.md, which has every setting, level and condition.
Standard: policies/README.md.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from relay.levels import LEVELS
from relay.policy import expected
from relay.policy.conditions import ON_RECIPIENTS
from relay.policy.file import Policy
from relay.policy.floors import Floor
from relay.policy.load import PolicyFolder, load_policies
from relay.policy.rules import CONDITIONS, When
from tests.testlib.policy_files import PEERS, named, write

POLICIES = Path(__file__).parents[3] / "policies"
README = (POLICIES / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```toml\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
HEADING = r"^# (?:\w+: )?\S+\.toml\n"
FILES = re.findall(rf"^# (?:(\w+): )?(\S+\.toml)\n(.*?)(?={HEADING}|\Z)", "".join(BLOCKS), re.DOTALL | re.MULTILINE)
"""Organisation ("" for none), name and text of each file: a comment with its name stands above it."""
EXAMPLES = {file: text for organisation, file, text in FILES if not organisation}
ORGANISATIONS = [each for each in FILES if each[0]]
ROWS = re.findall(r"^\| `(\S+@\S+)` \| `(\S+\.toml)`", README, re.MULTILINE)


@pytest.mark.parametrize(("site", "other"), [("alice.example", "bob.example"), ("bob.example", "alice.example")])
def test_the_working_set_seals_for_the_other_site_at_both(site: str, other: str) -> None:
    peer = other.removesuffix(".example")
    policies = load_policies(POLICIES, {peer: [other]})
    decision = policies.decide(f"x@{site}", f"y@{other}")
    assert (decision.levels, decision.peer, decision.otherwise) == (("aes",), peer, "hold")
    assert policies.decide(f"x@{site}", "y@elsewhere.example").otherwise == "refuse"
    assert not any(file.policy.in_clear for file in policies.files.values())


def test_every_example_of_the_readme_loads(tmp_path: Path) -> None:
    assert len(BLOCKS) == README.count("```toml")
    assert all(re.match(HEADING, block) for block in BLOCKS)
    assert len({(organisation, file) for organisation, file, _ in FILES}) == len(FILES)
    policies = PolicyFolder(write(tmp_path, EXAMPLES), PEERS).read_tested()
    assert set(policies.files) == set(EXAMPLES) - {"floors.toml", "groups.toml", "tests.toml"}
    assert policies.floors
    assert policies.groups


@pytest.mark.parametrize(("recipient", "file"), ROWS)
def test_the_readme_says_which_example_decides(tmp_path: Path, recipient: str, file: str) -> None:
    policies = load_policies(write(tmp_path, EXAMPLES), PEERS)
    assert named(policies.decide("", recipient), tmp_path) == file


def test_the_readme_has_every_setting_and_every_level() -> None:
    assert len(ROWS) >= 8
    for key in Policy.model_fields:
        assert f"\n| `{key}` |" in README
    table = [(f'`"{level.name}"`', f"`{level.number}`") for level in LEVELS]
    assert re.findall(r"^\| (`\S+`) \| (`\d+`) \|", README, re.MULTILINE) == table, (
        "policies/README.md, strongest first"
    )
    assert '\n| `"plaintext"` | none |' in README


def test_the_readme_has_every_condition_and_every_key_of_a_test() -> None:
    rows = "".join(re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", README, re.MULTILINE))
    for name in (*CONDITIONS, *ON_RECIPIENTS, *expected.Test.model_fields):
        assert f"`{name}`" in rows
    for name in Floor.model_fields.keys() - When.model_fields.keys():
        assert f"`{name}" in README
