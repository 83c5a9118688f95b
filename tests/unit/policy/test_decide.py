"""Which policy file decides about a recipient, what a decision says, and how it is explained.
Standard: tests/data/decisions.toml, a table that an administrator can read, and policies/README.md.
"""

from __future__ import annotations

import dataclasses
import re
import timeit
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from relay.audit.entries import AddressHash
from relay.errors import PolicyHolds
from relay.policy.decide import PolicySet
from relay.policy.load import load_policies
from relay.store.secret import SiteSecret
from tests.testlib.policy_files import AES, PEERS, TABLE, named, write


def expect(policies: PolicySet, row: dict[str, Any], file: str) -> None:
    """Compare one decision with its row."""
    decision = policies.decide("alice@alice.example", row["to"])
    assert named(decision, policies.directory) == file
    assert (decision.sender, decision.recipient) == ("alice@alice.example", row["to"])
    assert decision.version == policies.version
    assert list(decision.levels) == row.get("levels", list(decision.levels))
    assert decision.peer == (None if row.get("no_peer") else row.get("peer", decision.peer))
    assert decision.otherwise == row.get("otherwise", decision.otherwise)


@pytest.mark.parametrize("row", TABLE["decision"], ids=lambda row: row["why"])
def test_the_table_of_decisions(without_default: PolicySet, with_default: PolicySet, row: dict[str, Any]) -> None:
    if "file" in row:
        expect(without_default, row, row["file"])
        expect(with_default, row, row["file"])
    elif "held" in row:
        for policies in (without_default, with_default):
            with pytest.raises(PolicyHolds, match=row["held"]):
                policies.decide("alice@alice.example", row["to"])
    else:
        with pytest.raises(PolicyHolds, match=r"no policy covers .* create .*default\.toml"):
            without_default.decide("alice@alice.example", row["to"])
        expect(with_default, row, "default.toml")


@pytest.mark.parametrize("recipient", ["kurt%x@bob.example", "kurt@nowhere.example", "kurt kurt@", "kurt@a..b"])
def test_why_nobody_covers_a_recipient_is_recorded_without_their_name(
    without_default: PolicySet, recipient: str
) -> None:
    with pytest.raises(PolicyHolds, match="kurt") as held:
        without_default.decide("alice@alice.example", recipient)
    assert "kurt" not in AddressHash(SiteSecret(bytes(32))).cause(held.value)
    assert AddressHash(None).cause(held.value) == str(held.value)


def test_the_table_has_every_file_decide_something() -> None:
    deciding = {row.get("file") for row in TABLE["decision"]}
    assert set(TABLE["files"]) <= deciding
    assert len(TABLE["decision"]) >= 40


def test_a_recipient_that_no_file_covers_is_held_and_the_file_to_create_is_named(tmp_path: Path) -> None:
    policies = load_policies(write(tmp_path, {"carol.example.toml": AES}), PEERS)
    with pytest.raises(PolicyHolds) as held:
        policies.decide("", "x@bob.example")
    assert held.value.reply == "451 4.7.1 Message held by policy: no policy covers this recipient"
    assert str(tmp_path / "bob.example.toml") in str(held.value)
    assert str(tmp_path / "default.toml") in str(held.value)


def test_a_decision_names_the_line_of_the_levels(tmp_path: Path) -> None:
    text = '# levels = ["plaintext"]\notherwise = "refuse"\n\nlevels = [\n  "aes",\n]\n'
    policies = load_policies(write(tmp_path, {"default.toml": text}), PEERS)
    assert policies.decide("", "x@bob.example").line == 4


def test_the_peer_named_in_the_file_wins_over_the_owner_of_the_domain(tmp_path: Path) -> None:
    policies = load_policies(write(tmp_path, {"bob.example.toml": 'peer = "carol"\n' + AES}), PEERS)
    assert policies.decide("", "x@bob.example").peer == "carol"


def test_only_plaintext_is_in_clear(without_default: PolicySet) -> None:
    assert without_default.decide("", "x@clear.example").in_clear
    assert not without_default.decide("", "secret@clear.example").in_clear


def test_a_policy_set_and_a_decision_cannot_be_changed(without_default: PolicySet) -> None:
    decision = without_default.decide("", "x@bob.example")
    with pytest.raises(dataclasses.FrozenInstanceError):
        decision.levels = ("plaintext",)  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        without_default.version = ""  # type: ignore[misc]
    with pytest.raises(TypeError):
        without_default.files["x.toml"] = without_default.files["bob.example.toml"]  # type: ignore[index]


def test_later_changes_on_disk_do_not_reach_a_loaded_set(tmp_path: Path) -> None:
    policies = load_policies(write(tmp_path, {"bob.example.toml": AES}), PEERS)
    write(tmp_path, {"bob.example.toml": 'levels = ["plaintext"]', "bob.example/x.toml": 'levels = ["otp"]'})
    assert policies.decide("", "x@bob.example").levels == ("aes",)


def test_the_version_changes_with_names_and_contents_and_nothing_else(tmp_path: Path) -> None:
    def version(name: str, files: Mapping[str, str]) -> str:
        return load_policies(write(tmp_path / name, files), PEERS).version

    one = version("one", {"bob.example.toml": AES, "default.toml": AES})
    assert re.fullmatch("[0-9a-f]{40}", one)
    assert version("same", {"default.toml": AES, "bob.example.toml": AES, "README.md": "x"}) == one
    assert version("content", {"bob.example.toml": AES + "\n", "default.toml": AES}) != one
    assert version("name", {"carol.example.toml": AES, "default.toml": AES}) != one


def test_sets_made_to_have_the_same_beginning_of_a_sum_of_digests_have_two_versions(tmp_path: Path) -> None:
    """Both were 041a2e1298dc as long as a version was that; a relay kept the first one where the second came."""
    versions = set()
    for name, one, other in (("a", 'levels=["rsa"]\n# 2069', "# 5950"), ("b", 'levels=["otp"]\n# 1391', "# 386")):
        files = {"bob.example.toml": f"{one}\n", "zz.example.toml": f'peer="bob"\nlevels=["aes"]\n{other}\n'}
        versions.add(load_policies(write(tmp_path / name, files), PEERS).version)
    assert len({version[:12] for version in versions}) == 2


def test_a_decision_takes_microseconds(without_default: PolicySet) -> None:
    runs = 2000
    seconds = timeit.timeit(lambda: without_default.decide("a@b", "x+tag@lab.carol.example"), number=runs)
    assert seconds / runs < 0.0005  # a few millionths here; the margin is for a busy machine


def test_an_explanation_lists_every_file_looked_for_in_order(without_default: PolicySet) -> None:
    explanation = without_default.explain("a@b", "Who+Tag@sub.closed.carol.example")
    assert [(look.file, look.step, look.exists, look.decides) for look in explanation.lookups] == [
        ("sub.closed.carol.example/who+tag.toml", "person", False, False),
        ("sub.closed.carol.example/who.toml", "person without tag", False, False),
        ("sub.closed.carol.example.toml", "domain", False, False),
        ("closed.carol.example.toml", "parent domain", True, False),
        ("carol.example.toml", "parent domain", True, True),
    ]


def test_an_explanation_of_a_held_mail_says_why(without_default: PolicySet) -> None:
    explanation = without_default.explain("a@b", "x@elsewhere.example")
    assert explanation.decision is None
    assert "no policy covers" in explanation.held
    assert [look.file for look in explanation.lookups][-1] == "default.toml"
