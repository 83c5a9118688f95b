"""What is told of canaries: the page, the alarm that begins and ends, `check`, `keys plan`, settings that cannot be.
Standard: relay/counting/alarms.py; the page's numbers are those of /metrics.
"""

from __future__ import annotations

import asyncio
import json

import pytest
from structlog.testing import capture_logs

from relay.config import load_config
from relay.errors import ConfigError
from relay.status import rules
from tests.integration.canary.conftest import ASKS, BOB, Making, asked_long_ago
from tests.system.drill import shortened
from tests.testlib.relay_command import run
from tests.testlib.sites import Site
from tests.testlib.status_page import page


async def test_the_page_has_the_numbers_of_metrics(making: Making) -> None:
    async with making.both() as scene:
        alice = await scene.until(scene.alice, "qumail_canary_returned_total", peer="bob")
        alice = await scene.until(scene.alice, "qumail_canary_sent_total", peer="bob")
        while not (trip := alice.sum("qumail_canary_round_trip_seconds", peer="bob")):
            alice = await scene.alice()
        shown = await page(scene.addresses[0]["status"])
        [(words, counts)] = shown.table("canary")
        assert (words[0], words[2], counts) == ("bob", f"{trip:,.2f} s", {"sent": 1, "returned": 1})
        assert words[1] == "✓ in time less than 1 min ago"
        assert shown.facts("canary") == {"of peers, answered": "0", "dropped without an answer": "0"}
        assert "every 1 min" in shown.text("canary")
        assert shown.mails() == {("outgoing", "aes", "delivered"): 1, ("incoming", "aes", "consumed"): 1}
        shown = await page(scene.addresses[1]["status"])
        assert shown.facts("canary") == {"of peers, answered": "1", "dropped without an answer": "0"}
        assert "No peer is asked" in shown.text("canary")


async def test_the_alarm_begins_when_none_comes_back_and_ends_when_one_does(
    making: Making, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shortened(), capture_logs() as logs:
        monkeypatch.setattr(rules, "_canary_limit", lambda _: 0.5)
        async with making.both() as scene:
            scene.wires[1].is_open = False
            await scene.until(scene.alice, "qumail_alarm", alarm="canary_late")
            [begun] = [each for each in logs if each["event"] == "alarm_begins" and each["alarm"] == "canary_late"]
            assert begun["about"] == "bob"
            assert "no canary has come back from peer bob" in begun["cause"]
            monkeypatch.setattr(rules, "_canary_limit", lambda _: 60.0)  # not before the next one is late
            scene.wires[1].is_open = True
            async with asyncio.timeout(30):
                while not (await scene.alice()).sum("qumail_canary_returned_total", peer="bob"):  # one, or more already
                    for site in scene.sites:  # again and again: one that the wire has cut is written down late
                        asked_long_ago(site)
                    await asyncio.sleep(0.5)
            await scene.until(scene.alice, "qumail_alarm", 0, alarm="canary_late")
        ended = [each for each in logs if each["event"] == "alarm_ends" and each["alarm"] == "canary_late"]
        assert len(ended) == 1


async def test_check_says_whose_canary_policy_lets_out_in_clear(making: Making) -> None:
    alice = making.site("alice", settings=ASKS)
    policy = alice.directory / "policies" / "bob.example" / "qumail-canary.toml"
    policy.parent.mkdir()
    policy.write_text('levels = ["plaintext"]\nreason = "a test"\n')
    [problem] = (await check(alice))["canary"]
    assert problem.startswith(f"peer bob gets none: {policy}:1 lets mail to {BOB} out")
    policy.write_text('levels = ["aes"]\n')
    assert (await check(alice))["canary"] == []


async def test_a_peer_is_asked_as_soon_as_policy_lets_its_canary_be_sealed(making: Making) -> None:
    alice = making.site("alice", settings=ASKS)
    policy = alice.directory / "policies" / "bob.example.toml"
    policy.write_text('levels = ["plaintext"]\nreason = "a test"\n')
    with capture_logs() as logs:
        async with making.with_alice(alice) as scene:
            async with asyncio.timeout(30):
                while not any(each["event"] == "canary_not_possible" for each in logs):
                    await asyncio.sleep(0.02)
            assert (await scene.alice()).of_name("qumail_canary_age_seconds") == {}
            assert scene.wires[0].got == []
            policy.write_text('levels = ["aes"]\n')
            await scene.until(scene.alice, "qumail_canary_returned_total", peer="bob")
    assert len([each for each in logs if each["event"] == "canary_not_possible"]) == 1


async def test_in_shadow_mode_none_leaves(making: Making) -> None:
    alice = making.site("alice", settings=ASKS)
    text = alice.config_file.read_text()
    alice.config_file.write_text(text.replace('directory = "policies"', 'directory = "policies"\nshadow = true'))
    with capture_logs() as logs:
        async with making.with_alice(alice) as scene:
            async with asyncio.timeout(30):
                while not any(each["event"] == "canary_not_possible" for each in logs):
                    await asyncio.sleep(0.02)
            assert scene.wires[0].got == []
    assert "shadow mode" in (await check(alice))["canary"][0]


async def test_who_does_not_want_to_answer_does_not(making: Making) -> None:
    async with making.both(bob="\n[canary]\nanswer = false\n") as scene:
        await scene.until(scene.bob, "qumail_canary_dropped_total", reason="not answered")
        assert scene.receipts == []
        await scene.nothing_is_left()


async def test_keys_plan_names_what_canaries_take(making: Making) -> None:
    without, with_ = making.site("alice"), making.site("alice", settings=ASKS, directory="asks")
    command = ["keys", "plan", "--mails", "10", "--size", "1K", "--level", "aes", "--json"]
    for site, keys in ((without, 0), (with_, 2 * 1440)):
        _, _, out = await run(*command, "--config", site.config_file)
        assert json.loads(out)["canary_keys"] == keys
    _, _, out = await run(*command[:-1], "--config", with_.config_file)
    assert b"canaries    2,880 keys a day more, half of them where the peer asks as often" in out


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("every = 59", "greater than or equal to 60"),
        ("every = 900\nmore = 1", "more"),
    ],
)
def test_settings_that_cannot_be(making: Making, settings: str, said: str) -> None:
    site = making.site("alice", settings=f"\n[canary]\n{settings}\n")
    with pytest.raises(ConfigError, match=said):
        load_config(site.config_file)


def test_a_site_that_only_sends_cannot_ask(making: Making) -> None:
    site = making.site("alice", settings=ASKS)
    before, _, after = site.config_file.read_text().partition("[incoming]")
    site.config_file.write_text(before + "[policies]" + after.partition("[policies]")[2])
    with pytest.raises(ConfigError, match=r"canary.every: needs \[outgoing\]"):
        load_config(site.config_file)


async def check(site: Site) -> dict[str, list[str]]:
    _, _, out = await run("check", "--json", "--config", site.config_file)
    return {each["what"]: each["problems"] for each in json.loads(out)}
