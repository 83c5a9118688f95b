"""Whatever comes for the canary's address and is no genuine canary is taken, and counts for nothing.
Standard: relay/FORMAT.md, section 11: no mailbox gets it, nobody is answered, no alarm of others is raised by it.
"""

from __future__ import annotations

import asyncio
import os

import pytest

from relay.canary.message import CanaryNote, write
from relay.config import TCPAddress
from tests.integration.canary.conftest import ALICE, BOB, Making, Scene, asked_long_ago
from tests.integration.entry.milter.mta import MTA, Answer, in_thread
from tests.testlib import mails
from tests.testlib.sink import Got
from tests.testlib.submit import submit, submit_lmtp

QUESTION, RECEIPT = "question", "receipt"


def canary(kind: str, nonce: bytes = b"\x07" * 32, from_: str = ALICE, to: str = BOB) -> bytes:
    return write(CanaryNote(kind, nonce), from_, to, "relay.example")  # type: ignore[arg-type]


async def nothing_came_of_it(scene: Scene, number: int = 1, **reasons: float) -> None:
    """Bob's relay has dropped so many mails, and has answered so many questions."""
    for reason, count in reasons.items():
        await scene.until(scene.bob, "qumail_canary_dropped_total", count, reason=reason.replace("_", " "))
    assert (await scene.bob()).sum("qumail_canary_answered_total") == number == len(scene.receipts)
    await scene.nothing_is_left()


@pytest.mark.promise("A forged or repeated canary counts for nothing, and nobody answers it")
async def test_a_canary_in_clear_is_taken_and_nobody_answers(making: Making) -> None:
    async with making.both(alice="") as scene:
        incoming = scene.addresses[1]
        for kind in (QUESTION, RECEIPT):
            assert (await submit(incoming["incoming"], canary(kind), sender=ALICE, recipients=[BOB])).code == 250
            [reply] = await submit_lmtp(incoming["incoming_lmtp"], canary(kind), sender="", recipients=[BOB])
            assert reply.code == 250
        await nothing_came_of_it(scene, 0, clear_text=2, bounce=2)


async def test_the_local_part_counts_in_any_case_and_at_every_domain_of_the_site_alone(making: Making) -> None:
    async with making.both(alice="") as scene:
        incoming = scene.addresses[1]["incoming"]
        assert (await submit(incoming, mails.plain(), recipients=["QuMail-Canary@BOB.example"])).code == 250
        assert scene.inboxes[1].got == []
        for other in ("qumail-canary@other.example", "qumail-canary+x@bob.example"):
            assert (await submit(incoming, mails.plain(), recipients=[other])).code == 250
            assert scene.inboxes[1].got.pop().recipients == (other,)


async def test_the_others_of_the_same_mail_get_theirs(making: Making) -> None:
    async with making.both(alice="") as scene:
        for recipients in ([BOB, "ben@bob.example"], ["ben@bob.example", BOB]):
            message = mails.plain(recipients[0])
            assert (await submit(scene.addresses[1]["incoming"], message, recipients=recipients)).code == 250
            assert scene.inboxes[1].got.pop().recipients == ("ben@bob.example",)
            sealed = message.replace(b"<1@", b"<2@")
            assert (await submit(scene.addresses[0]["outgoing"], sealed, recipients=recipients)).code == 250
            [got] = await scene.inboxes[1].messages(1)
            assert got.recipients == ("ben@bob.example",)
            assert got.message.endswith(sealed)
            scene.inboxes[1].got.clear()
        await nothing_came_of_it(scene, 0, clear_text=2, other_sender=2)


@pytest.mark.parametrize("sealed", [True, False])
async def test_what_a_milter_leaves_to_its_mail_server_is_for_the_others_alone(making: Making, sealed: bool) -> None:
    async with making.both(listener="milter", alice="") as scene:
        recipients = ("ben@bob.example", BOB)
        if sealed:
            assert (await submit(scene.addresses[0]["outgoing"], mails.plain(), recipients=recipients)).code == 250
        else:
            await scene.wires[0].hand_on(Got("ann@alice.example", recipients, mails.plain()))
        reason = "other sender" if sealed else "clear text"
        await scene.until(scene.bob, "qumail_canary_dropped_total", reason=reason)
        async with asyncio.timeout(30):
            while not scene.wires[0].kept:
                await asyncio.sleep(0.02)
        assert [each.recipients for each in scene.wires[0].kept] == [("ben@bob.example",)]


@pytest.mark.promise("A forged or repeated canary counts for nothing, and nobody answers it")
@pytest.mark.parametrize("listener", ["incoming", "lmtp", "milter"])
async def test_a_question_that_comes_again_is_not_answered_again(making: Making, listener: str) -> None:
    async with making.both(listener=listener) as scene:
        await scene.until(scene.alice, "qumail_canary_returned_total", peer="bob")
        asked_long_ago(scene.sites[1])  # the rate does not hide it
        for _ in range(2):
            await scene.wires[0].hand_on(scene.questions[0])
        await nothing_came_of_it(scene, repeated=2)


@pytest.mark.promise("A forged or repeated canary counts for nothing, and nobody answers it")
async def test_a_receipt_counts_once(making: Making) -> None:
    async with making.both() as scene:
        await scene.until(scene.alice, "qumail_canary_returned_total", peer="bob")
        await scene.wires[1].hand_on(scene.receipts[0])
        alice = await scene.until(scene.alice, "qumail_canary_dropped_total", reason="repeated")
        assert alice.sum("qumail_canary_returned_total") == 1
        await scene.nothing_is_left()


@pytest.mark.promise("A forged or repeated canary counts for nothing, and nobody answers it")
@pytest.mark.usefixtures("dishonest")
async def test_a_receipt_that_the_peer_has_sealed_for_another_nonce_counts_for_nothing(making: Making) -> None:
    async with making.both() as scene:
        scene.wires[0].is_open = False  # no genuine one comes
        await scene.until(scene.alice, "qumail_canary_sent_total", peer="bob")
        for nonce in (bytes(32), os.urandom(32)):
            forged = canary(RECEIPT, nonce, BOB, ALICE)
            reply = await submit(scene.addresses[1]["outgoing"], forged, sender=BOB, recipients=[ALICE])
            assert reply.code == 250
        alice = await scene.until(scene.alice, "qumail_canary_dropped_total", 2, reason="unexpected")
        assert alice.sum("qumail_canary_returned_total") == 0
        assert alice.sum("qumail_canary_round_trip_seconds") == 0
        await scene.nothing_is_left()


async def test_a_receipt_for_a_canary_that_was_followed_by_another_counts_for_nothing(making: Making) -> None:
    async with making.both() as scene:
        scene.wires[1].is_open = False
        [late] = await scene.wires[1].messages(1)
        scene.wires[0].is_open = False
        asked_long_ago(scene.sites[0])
        await scene.until(scene.alice, "qumail_canary_sent_total", 2, peer="bob")
        await scene.wires[1].hand_on(late)
        alice = await scene.until(scene.alice, "qumail_canary_dropped_total", reason="unexpected")
        assert alice.sum("qumail_canary_returned_total") == 0


@pytest.mark.usefixtures("dishonest")
@pytest.mark.parametrize(
    ("message", "sender"),
    [
        (canary(QUESTION).replace(b'"canary": 1', b'"canary": 2'), ALICE),
        (canary(QUESTION).replace(b"auto-generated", b"no"), ALICE),
        (canary(QUESTION) + b" " * 4096 + b"\r\n", ALICE),
        (mails.plain(), ALICE),
    ],
)
async def test_what_is_not_as_written_is_not_answered(making: Making, message: bytes, sender: str) -> None:
    async with making.both(alice="") as scene:
        assert (await submit(scene.addresses[0]["outgoing"], message, sender=sender, recipients=[BOB])).code == 250
        await nothing_came_of_it(scene, 0, malformed=1)


@pytest.mark.usefixtures("dishonest")
@pytest.mark.parametrize("other", ["ben@bob.example", "QuMail-Canary@bob.example"])
async def test_a_question_whose_sealed_envelope_names_two_recipients_is_not_answered(
    making: Making, other: str
) -> None:
    async with making.both(alice="") as scene:
        message = canary(QUESTION)
        assert (
            await submit(scene.addresses[0]["outgoing"], message, sender=ALICE, recipients=[BOB, other])
        ).code == 250
        await scene.until(scene.bob, "qumail_canary_dropped_total", reason="malformed")
        bob = await scene.bob()
        assert bob.sum("qumail_canary_answered_total") == len(scene.receipts) == 0


@pytest.mark.parametrize("sender", ["ann@alice.example", ""])
async def test_a_question_of_another_sender_than_the_peers_canary_is_not_answered(making: Making, sender: str) -> None:
    async with making.both(alice="") as scene:
        message = canary(QUESTION)
        assert (await submit(scene.addresses[0]["outgoing"], message, sender=sender, recipients=[BOB])).code == 250
        await nothing_came_of_it(scene, 0, other_sender=1)


@pytest.mark.promise("A peer's canaries cost a receipt in 50 seconds")
@pytest.mark.usefixtures("dishonest")
async def test_a_flood_of_questions_gets_one_receipt(making: Making) -> None:
    async with making.both(alice="") as scene:
        for number in range(20):
            message = canary(QUESTION, number.to_bytes(32, "big"))
            assert (await submit(scene.addresses[0]["outgoing"], message, sender=ALICE, recipients=[BOB])).code == 250
        await scene.until(scene.bob, "qumail_canary_answered_total", peer="alice")
        await nothing_came_of_it(scene, 1, too_often=19)


async def test_what_was_changed_on_the_way_is_taken_and_dropped(making: Making) -> None:
    async with making.both() as scene:
        scene.wires[0].is_open = False
        [question] = await scene.wires[0].messages(1)
        middle = len(question.message) - 60
        other = b"A" if question.message[middle : middle + 1] != b"A" else b"B"
        changed = question.message[:middle] + other + question.message[middle + 1 :]
        reply = await submit(scene.addresses[1]["incoming"], changed, sender=ALICE, recipients=[BOB])
        assert reply.code == 250
        await nothing_came_of_it(scene, 0, unreadable=1)


async def test_a_mail_of_somebody_else_that_is_led_to_the_canary_is_dropped(making: Making) -> None:
    async with making.both(alice="") as scene:
        scene.wires[0].is_open = False
        assert (await submit(scene.addresses[0]["outgoing"], mails.plain())).code == 250
        [sealed] = scene.wires[0].got
        assert (await submit(scene.addresses[1]["incoming"], sealed.message, recipients=[BOB])).code == 250
        await nothing_came_of_it(scene, 0, not_named=1)


async def test_a_canary_waits_for_a_key_that_is_late(making: Making) -> None:
    async with making.both() as scene:
        scene.wires[0].is_open = False
        [question] = await scene.wires[0].messages(1)
        making.kmes.km2.misbehave("dec_keys", "none", times=None, spends=False)
        reply = await submit(scene.addresses[1]["incoming"], question.message, sender=ALICE, recipients=[BOB])
        assert reply.code == 451
        making.kmes.km2.behave()
        await scene.wires[0].hand_on(question)
        await scene.until(scene.alice, "qumail_canary_returned_total", peer="bob")
        await scene.nothing_is_left()


async def test_what_came_with_less_than_policy_requires_counts_for_nothing(making: Making) -> None:
    async with making.both() as scene:
        require = 'levels = ["aes"]\nrequire = "otp"\nunprotected = "quarantine"\n'
        (scene.sites[0].directory / "policies" / "bob.example.toml").write_text(require)
        scene.wires[0].is_open = False
        [question] = await scene.wires[0].messages(1)
        await scene.until(scene.alice, "qumail_policy_files", 2)
        await scene.wires[0].hand_on(question)
        alice = await scene.until(scene.alice, "qumail_canary_dropped_total", reason="unprotected")
        assert alice.sum("qumail_canary_returned_total") == 0
        await scene.nothing_is_left()


@pytest.mark.promise("Nobody but the relay sends in the canary's name")
async def test_nobody_but_the_relay_sends_in_the_canarys_name_by_any_listener(making: Making) -> None:
    """So no user of either site can use up the receipt that a genuine canary would get."""
    async with making.both(alice="") as scene:
        listeners, forged = scene.addresses[0], canary(QUESTION)
        spellings = ('"qumail-canary"@alice.example', '"q\\umail-canary"@alice.example', "qumail-canary@alice.example.")
        for sender in (ALICE, "QuMail-Canary@ALICE.example", *spellings):
            said = [await submit(listeners["outgoing"], forged, sender=sender, recipients=[BOB])]
            said += await submit_lmtp(listeners["outgoing_lmtp"], forged, sender=sender, recipients=[BOB])
            assert [str(reply) for reply in said] == ["550 5.7.1 Only the relay itself sends from this address"] * 2
            answer = await in_thread(_by_milter, listeners["outgoing_milter"], sender)
            assert answer.text == "550 5.7.1 Only the relay itself sends from this address"
        assert not scene.wires[0].got


def _by_milter(listener: TCPAddress, sender: str) -> Answer:
    mta = MTA(listener)
    try:
        mta.negotiate()
        return mta.mail([("From", f" <{sender}>")], "", sender=f"<{sender}>", recipients=[f"<{BOB}>"])
    finally:
        mta.close()
