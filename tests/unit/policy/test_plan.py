"""Who shares a sealed copy with whom, from the first or after a fall-back.
Standard: policies/README.md; what each recipient gets, test_policy_agreement.py compares with a reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from relay.errors import PolicyHolds
from relay.journey.sealing import SealedCopy, Sealer
from relay.keys import KeyReference
from relay.keys.ring import KeyRing
from relay.keys.types import SealingKey
from relay.levels import NAMES, LevelName
from relay.mail import Envelope, Mail, Recipient
from relay.policy.decide import Decision, PolicySet
from tests.testlib import mails
from tests.testlib.planning import Keys, planner_of
from tests.testlib.policy_reference import Ability

SENDER = "ann@alice.example"
AT_BOB = Decision(
    ("aes",), "bob", source="one.toml", line=1, sender=SENDER, recipient="", version="0" * 12, possible=NAMES
)


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


def test_a_peer_has_a_fifth_of_the_shortest_life_of_a_key_to_fetch_it(tmp_path: Path) -> None:
    planner = planner_of(Ability(), tmp_path, compression=False)
    [group] = {kme.group for kme in planner.config.kmes.values()}
    assert planner.left_for_peer([KeyReference("k", kme_group=group)]) == 60
    assert planner.left_for_peer([]) == math.inf
    assert planner.left_for_peer([KeyReference("k", kme_group="gone from relay.toml")]) == 0


class SwappedMeanwhile(Keys):
    """Who takes a key waits for it, and other things are read again meanwhile."""

    def __init__(self, swap: Callable[[], None]) -> None:
        super().__init__({})
        self._swap = swap

    async def take(self, peer: str, *, level: str = "aes", size: int = 0, low_priority: bool = False) -> SealingKey:
        self._swap()
        return await super().take(peer, level=level, size=size, low_priority=low_priority)


async def test_what_is_read_again_while_a_mail_is_sealed_counts_for_the_next_one(tmp_path: Path) -> None:
    """The peer is gone, or has another SAE ID, by the time that the key is there."""
    now = [planner_of(Ability(), tmp_path, compression=False)]
    before = now[0].config
    later = iter(({}, {"bob": before.peers["bob"].model_copy(update={"sae_id": "sae-other"})}))

    def swap() -> None:
        now[0] = replace(now[0], config=before.model_copy(update={"peers": next(later)}))

    sealer = Sealer(lambda: now[0], lambda: all_at(AT_BOB), cast("KeyRing", SwappedMeanwhile(swap)))
    mail = Mail(Envelope(SENDER, (Recipient("x@bob.example"),)), mails.plain())
    first = await sealer.seal(mail)
    assert [copy.protection for copy in first.copies] == ["aes"]
    assert await sealer.still_permitted(mail, first.copies) == []
    [held] = (await sealer.seal(mail)).failures.values()
    assert isinstance(held, PolicyHolds)
    assert "peer 'bob' is known no more" in str(held)
    now[0] = replace(now[0], config=before.model_copy(update={"peers": {"bob": before.peers["bob"]}}))
    again = await sealer.seal(replace(mail, message=mails.plain("another")))
    assert [copy.keys[0].slave_sae for copy in again.copies] == ["1"]


@pytest.mark.parametrize("level", ["aes", "otp"])
async def test_no_key_for_another_sae_is_used_when_the_peers_has_just_changed(tmp_path: Path, level: LevelName) -> None:
    planner = planner_of(Ability(), tmp_path, compression=False)
    peers = {"bob": planner.config.peers["bob"].model_copy(update={"sae_id": "sae-before"})}
    before = replace(planner, config=planner.config.model_copy(update={"peers": peers}))
    sealer = Sealer(lambda: before, lambda: all_at(replace(AT_BOB, levels=(level,))), cast("KeyRing", Keys({})))
    sealed = await sealer.seal(Mail(Envelope(SENDER, (Recipient("x@bob.example"),)), mails.plain()))
    assert sealed.copies == []
    assert "SAE has just changed" in str(sealed.failures["x@bob.example"])


def all_at(decision: Decision) -> PolicySet:
    return cast(
        "PolicySet", SimpleNamespace(decide=lambda *_: decision, looks_inside=False, patterns=0, version="0" * 12)
    )


def two(**settings: tuple[Any, Any]) -> tuple[Decision, Decision]:
    """Two decisions that differ in these settings."""
    return cast(
        "tuple[Decision, Decision]",
        tuple(replace(AT_BOB, **{name: values[which] for name, values in settings.items()}) for which in (0, 1)),
    )


@pytest.mark.parametrize(
    ("decisions", "copies"),
    [
        (two(levels=(("pqc+aes",), ("pqc+aes", "pqc"))), ["pqc+aes"]),
        (two(levels=(("rsa",), ("rsa",)), priority=("low", "normal")), ["rsa"]),
        (two(levels=(("plaintext",), ("plaintext",)), peer=("bob", None), priority=("low", "normal")), ["plaintext"]),
        (two(priority=("low", "normal")), ["aes", "aes"]),
        (two(levels=(("rsa",), ("rsa+aes", "rsa"))), ["rsa+aes", "rsa"]),
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
        (replace(AT_BOB, levels=("rsa+aes", "rsa")), replace(AT_BOB, levels=("rsa",)), ("bob", "aes")),
    ],
)
async def test_who_falls_back_shares_the_copy_of_those_who_wanted_it_from_the_first(
    tmp_path: Path, first: Decision, second: Decision, key: tuple[str, str]
) -> None:
    [copy] = await copies_of(tmp_path, second, first, lacking=key)
    assert sorted(bool(each.downgrade) for each in copy.planned) == [False, True]
