"""Mail that comes again: the same message, the same key, the same id, at the same relay, at another one, at once.
Standard: relay/FORMAT.md; a recipient gets a mail once and a key opens one ciphertext, at all relays of a site together.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial

import pytest
from structlog.testing import LogCapture

from relay.config import TCPAddress
from relay.formats import cms, mime
from tests.integration.opening.conftest import ANN, BEA, BEN, EVE, OUTSIDER, Alice, Bob, at_every_level
from tests.testlib import mails
from tests.testlib.submit import SMTPReply, submit, until_settled


def flipped(message: bytes) -> bytes:
    """With one bit of the tag flipped: its keys are fetched, and bound to nothing."""
    der = mime.sealed_content(message)
    return mime.sealed_message(message, der[:-1] + bytes([der[-1] ^ 1]))


def with_other_header(message: bytes) -> bytes:
    """The same CMS, as an outsider wraps it."""
    return mime.sealed_message(
        b"From: Boss <boss@alice.example>\r\nMessage-ID: <2@x>\r\n\r\n", mime.sealed_content(message)
    )


@pytest.mark.in_process
@at_every_level
async def test_at_every_level_a_mail_is_delivered_once_however_often_it_comes(
    alice: Alice, bob_on_sqlite: Bob, level: str, log: LogCapture
) -> None:
    bob, sealed = bob_on_sqlite, await alice.seal(level=level)
    async with bob.running() as relay:
        for message, sender in ((sealed, ANN), (sealed, OUTSIDER), (with_other_header(sealed), ANN)):
            assert (await until_settled(relay, message, sender=sender)).code == 250
    async with bob.running() as relay:  # the memory outlives the relay
        assert (await submit(relay, sealed)).code == 250
    assert bob.got == [(ANN, (BEN,))]
    assert await bob.reasons() == []
    assert [each["recipients"] for each in log.entries if each["event"] == "came_again"] == [1, 1, 1]
    assert BEN not in str([each for each in log.entries if each["event"] == "came_again"])


async def test_a_mail_that_one_relay_has_delivered_is_not_delivered_by_another(
    alice: Alice, bob_on_postgresql: Bob
) -> None:
    bob = bob_on_postgresql
    twin, sealed = bob.twin(), await alice.seal()
    async with bob.running() as one, twin.running() as two:
        assert (await submit(one, sealed)).code == 250
        for relay in (two, one, two):
            assert (await until_settled(relay, sealed)).code == 250
    assert bob.got == [(ANN, (BEN,))]


async def test_two_relays_that_get_the_same_mail_at_once_deliver_it_once(alice: Alice, bob_on_postgresql: Bob) -> None:
    bob = bob_on_postgresql
    async with bob.running() as one, bob.twin().running() as two:
        for number in range(5):
            sealed = await alice.seal(BEN, BEA, message=mails.plain(body=f"number {number}\r\n"))
            await asyncio.gather(*(until_250(relay, sealed, BEN, BEA) for relay in (one, two)))
    assert sorted(recipient for _, recipients in bob.got for recipient in recipients) == [BEA] * 5 + [BEN] * 5


async def until_250(relay: TCPAddress, sealed: bytes, *recipients: str) -> SMTPReply:
    """As a mail server does: held mail is tried again."""
    async with asyncio.timeout(60):
        while True:
            reply = await submit(relay, sealed, recipients=recipients or [BEN])
            if reply.code == 250:
                return reply
            assert reply.code == 451, reply


@pytest.mark.in_process
@pytest.mark.parametrize("level", ["otp", "aes"])
async def test_the_second_message_under_a_key_is_put_aside_and_raises_an_alarm(
    alice: Alice, bob: Bob, level: str, log: LogCapture
) -> None:
    same = alice.with_the_same_keys()
    first, second = [await same.seal(level=level, message=mails.plain(body=f"{each}\r\n")) for each in ("one", "two")]
    async with bob.running() as relay:
        for message in (first, second, first):
            assert (await until_settled(relay, message)).code == 250
    assert [each.message.endswith(b"one\r\n") for each in bob.hop.got] == [True]
    assert await bob.reasons() == ["key-used"]
    [alarm] = [each for each in log.entries if each["event"] == "key_used_before"]
    assert (alarm["log_level"], alarm["peer_sae"]) == ("error", "2")


async def test_as_many_messages_open_under_a_key_as_both_sites_have_set(alice: Alice, bob_on_sqlite: Bob) -> None:
    bob, same = bob_on_sqlite, alice.with_the_same_keys()
    bob.configure("[peers.alice]", "[peers.alice]\nkey_max_messages = 2")
    sealed = [await same.seal(message=mails.plain(body=f"{each}\r\n")) for each in range(3)]
    async with bob.running() as relay:
        for message in (*sealed, *sealed):
            assert (await until_settled(relay, message)).code == 250
    assert len(bob.got) == 2
    assert await bob.reasons() == ["key-used"]


@pytest.mark.parametrize("level", ["otp", "aes"])
async def test_a_forgery_that_comes_first_does_not_keep_the_genuine_mail_out(
    alice: Alice, bob: Bob, level: str
) -> None:
    """A tag that is wrong binds nothing. Another worker finds the key in the store, a moment later."""
    bob.configure("lag_patience = 0.5", "lag_patience = 5")
    sealed = await alice.seal(level=level)
    async with bob.running() as relay:
        assert (await submit(relay, flipped(sealed), recipients=[EVE])).code == 250
        assert (await submit(relay, sealed)).code == 250
    assert bob.got == [(ANN, (BEN,))]
    assert await bob.reasons() == ["tampered"]


@pytest.mark.parametrize("level", ["otp", "aes"])
async def test_of_two_messages_under_one_key_at_two_relays_at_once_one_is_delivered(
    alice: Alice, bob_on_postgresql: Bob, level: str
) -> None:
    bob = bob_on_postgresql
    async with AsyncExitStack() as stack:
        relays = [await stack.enter_async_context(each.running()) for each in (bob, bob.twin())]
        for number in range(5):
            same = alice.with_the_same_keys()
            both = [await same.seal(level=level, message=mails.plain(body=f"{number} {each}\r\n")) for each in "ab"]
            await submit(relays[0], flipped(both[0]), recipients=[EVE])  # both find the key in the store
            await asyncio.gather(*(until_250(*each) for each in zip(relays, both, strict=True)))
            assert len(bob.got) == number + 1
    assert (await bob.reasons()).count("key-used") == 5


async def test_an_id_in_another_message_is_a_replay_and_kept(
    alice: Alice, bob: Bob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No relay writes one twice; a peer that does is not believed the second time."""
    monkeypatch.setattr(cms, "SealedEnvelope", partial(cms.SealedEnvelope, id=bytes(16)))
    first, second = [await alice.seal(message=mails.plain(body=f"{each}\r\n")) for each in ("one", "two")]
    async with bob.running() as relay:
        for message in (first, second):
            assert (await submit(relay, message)).code == 250
    assert len(bob.got) == 1
    assert await bob.reasons() == ["replayed"]
