"""Who shares a sealed copy with whom, from the first or after a fall-back.
Standard: policies/README.md; what each recipient gets, test_policy_agreement.py compares with a reference.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from relay.keys.ring import KeyRing
from relay.mail import Envelope, Mail, Recipient
from relay.policy.decide import PolicySet
from relay.policy.decision import Decision
from relay.sealing import SealedCopy, Sealer
from tests.testlib import mails
from tests.testlib.planning import Keys, planner_of
from tests.testlib.policy_reference import Ability

SENDER = "ann@alice.example"
AT_BOB = Decision(SENDER, "", ("aes",), "bob", "preferred", "hold", "one.toml", 1, "0" * 12)


async def copies_of(directory: Path, *decisions: Decision, lacking: tuple[str, str] | None = None) -> list[SealedCopy]:
    """What one mail becomes for recipients of whom policy says this, without keys of `lacking` (peer and use)."""
    numbered = {f"r{number}@x.example": each for number, each in enumerate(decisions)}

    def decide(sender: str, recipient: str, content: object = None) -> Decision:
        return replace(numbered[recipient], recipient=recipient)

    policies = cast("PolicySet", SimpleNamespace(decide=decide, looks_inside=False, patterns=0, version="0" * 12))
    planner = planner_of(Ability(), directory, compression=False)
    sealer = Sealer(lambda: planner, lambda: policies, cast("KeyRing", Keys({lacking: "none"} if lacking else {})))
    sealed = await sealer.seal(Mail(Envelope(SENDER, tuple(map(Recipient, numbered))), mails.plain()))
    assert not sealed.failures
    return sealed.copies


def two(**settings: tuple[Any, Any]) -> tuple[Decision, Decision]:
    """Two decisions that differ in these settings."""
    return cast(
        "tuple[Decision, Decision]",
        tuple(replace(AT_BOB, **{name: values[which] for name, values in settings.items()}) for which in (0, 1)),
    )


@pytest.mark.parametrize(
    ("decisions", "copies"),
    [
        (two(levels=(("otp",), ("otp",)), quantum=("off", "required")), ["otp"]),
        (two(quantum=("off", "preferred")), ["aes"]),
        (two(levels=(("pqc",), ("pqc",)), quantum=("required", "preferred")), ["pqc+aes"]),
        (two(levels=(("rsa",), ("rsa",)), quantum=("off", "off"), priority=("low", "normal")), ["rsa"]),
        (two(levels=(("plaintext",), ("plaintext",)), peer=("bob", None), priority=("low", "normal")), ["plaintext"]),
        (two(priority=("low", "normal")), ["aes", "aes"]),
        (two(levels=(("rsa",), ("rsa",)), quantum=("off", "preferred")), ["rsa+aes", "rsa"]),
        (two(peer=("bob", "carol")), ["aes", "aes"]),
    ],
)
async def test_recipients_share_a_copy_unless_what_differs_means_something_there(
    tmp_path: Path, decisions: tuple[Decision, Decision], copies: list[str]
) -> None:
    assert [each.protection for each in await copies_of(tmp_path, *decisions)] == copies


@pytest.mark.parametrize(
    ("first", "second", "key"),
    [
        (replace(AT_BOB, levels=("otp", "aes")), AT_BOB, ("bob", "otp")),
        (replace(AT_BOB, levels=("aes", "otp")), replace(AT_BOB, levels=("otp",)), ("bob", "aes")),
        (replace(AT_BOB, levels=("rsa",)), replace(AT_BOB, levels=("rsa",), quantum="off"), ("bob", "aes")),
    ],
)
async def test_who_falls_back_shares_the_copy_of_those_who_wanted_it_from_the_first(
    tmp_path: Path, first: Decision, second: Decision, key: tuple[str, str]
) -> None:
    [copy] = await copies_of(tmp_path, second, first, lacking=key)
    assert sorted(bool(each.downgrade) for each in copy.planned) == [False, True]
