"""`qumail-relay keys trial`: each KME gives a key, and the peer's relay finds it at its own KME and says so.
Standard: ETSI GS QKD 014 V1.1.1, 5.3 and 5.4; relay/FORMAT.md, section 11. What was not tried is never called well.
"""

from __future__ import annotations

import pytest

from tests.integration.canary.conftest import BOB, Making
from tests.testlib import relay_command
from tests.testlib.sites import Site

LITTLE = "--wait", "0.5"


async def trial(site: Site, *options: str) -> tuple[int, str]:
    """Exit status, and what it said."""
    status, said, out = await relay_command.run("keys", "trial", "--config", site.config_file, *options)
    return status, said + out.decode()


@pytest.mark.parametrize("level", ["otp", "aes"])
async def test_a_key_that_the_peer_has_fetched_is_told_as_such(making: Making, level: str) -> None:
    async with making.both(level, alice="") as scene:
        status, told = await trial(scene.sites[0])
        assert (status, "fetched and used it" in told) == (0, True), told
        assert "KME kme, peer bob" in told
        assert [each.recipients for each in scene.questions] == [(BOB,)]
        assert making.kmes.link.delivered["KM1"] >= 1
        await scene.nothing_is_left()


@pytest.mark.parametrize("kind", ["empty", "401"])
async def test_a_kme_that_answers_to_status_and_gives_no_key_is_told_by_trial_and_by_check(
    making: Making, kind: str
) -> None:
    alice = making.site("alice")
    if kind == "empty":
        making.kmes.link.bits = 0
    making.kmes.km1.misbehave("enc_keys", "http", times=None, code=503 if kind == "empty" else 401)
    status, told = await trial(alice, *LITTLE)
    assert (status, "WRONG" in told) == (1, True), told
    assert ("503" if kind == "empty" else "401") in told
    status, _, out = await relay_command.run("check", "--trial-keys", "--no-next-hops", "--config", alice.config_file)
    assert status == 1
    assert "WRONG  KME kme: a key for peer bob" in out.decode()


async def test_a_key_that_the_peer_does_not_find_is_told_though_our_kme_gave_it(making: Making) -> None:
    async with making.both(alice="") as scene:
        making.kmes.km2.misbehave("dec_keys", "http", times=None, code=404)
        status, told = await trial(scene.sites[0], *LITTLE)
        assert (status, "WRONG" in told) == (1, True), told
        assert "gave a key" in told
        assert "no answer" in told
        assert len(scene.questions) == 1


@pytest.mark.parametrize("how", ["by its setting", "by what was found"])
async def test_beside_a_relay_no_key_is_drawn_of_a_kme_that_drops_undelivered_ones(making: Making, how: str) -> None:
    making.kmes.link.drops_undelivered = True
    settings = "one_batch_at_a_time = true" if how == "by its setting" else ""
    alice, bob = making.site("alice"), making.site("bob")
    alice.config_file.write_text(
        alice.config_file.read_text().replace("lag_patience = 0.1", f"lag_patience = 0.1\n{settings}")
    )
    async with making.serving((alice, bob), "incoming") as scene:
        if how == "by what was found":
            await relay_command.run("check", "--trial-keys", "--no-next-hops", "--config", alice.config_file)
            await scene.until(scene.alice, "qumail_kme_drops_undelivered_keys", kme="kme")
        drawn = making.kmes.link.issued["KM1"]
        status, told = await trial(alice, *LITTLE)
        assert (status, "stop the relay first" in told) == (1, True), told
        assert making.kmes.link.issued["KM1"] == drawn


async def test_without_a_relay_that_serves_only_the_kme_is_tried_and_it_says_so(making: Making) -> None:
    status, told = await trial(making.site("alice"), *LITTLE)
    assert status == 0, told
    assert "gave a key" in told
    assert "not tried" in told
    assert "no relay serves" in told


async def test_where_the_canary_costs_no_key_only_the_kme_is_tried_and_it_says_so(making: Making) -> None:
    async with making.both("rsa", alice="") as scene:
        policies = scene.sites[0].config.policies.directory
        (policies / "default.toml").write_text('levels = ["rsa"]\n')
        status, told = await trial(scene.sites[0], *LITTLE)
        assert status == 0, told
        assert "gave a key" in told
        assert "not tried" in told
        assert scene.questions == []


@pytest.mark.parametrize("option", ["--peer", "--kme"])
async def test_a_name_that_is_none_is_refused_with_those_there_are(making: Making, option: str) -> None:
    status, told = await trial(making.site("alice"), option, "nobody")
    assert status != 0
    assert ("bob" if option == "--peer" else "kme") in told
