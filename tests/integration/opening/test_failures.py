"""Whatever fails on the way in: the next try gets the mail at once, nobody gets it twice, and all answers are alike.
Standard: DESIGN 7; a claim ends with the try that made it, or by itself where the relay was killed.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import pytest

from relay.audit.writing import Audit
from relay.dkim import Arrivals
from relay.errors import DeliveryUnderWay, KeyNotFound, NextHopUnavailable, QuarantineFull, StoreUnavailable
from relay.formats import mime
from relay.forward import NextHop
from relay.kme import DevelopmentKMEs
from relay.mail import Envelope, Mail, Recipient
from relay.policy.decide import PolicySet
from relay.process import assembly
from relay.quarantine.release import Released, Releaser
from relay.quarantine.triage import Triage
from relay.store.delivery_attempts import AttemptRows
from tests.integration.opening.conftest import ANN, BEA, BEN, EVE, OUTSIDER, Alice, Bob, alike
from tests.testlib import mails
from tests.testlib.hop import HANG_UP, SILENCE, Answer
from tests.testlib.interruptions import waiting_in
from tests.testlib.relay_command import run
from tests.testlib.sink import Sink
from tests.testlib.submit import submit, submit_lmtp, until_settled


def raising(error: BaseException) -> Callable[..., object]:
    def fails(*_: object, **__: object) -> object:
        raise error

    return fails


# --- claims --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("greeting", HANG_UP),
        ("MAIL", "451 4.3.0 later"),
        ("MAIL", "550 5.7.1 never"),
        (f"RCPT TO:<{BEN}>", "450 4.2.1 busy"),
        (f"RCPT TO:<{BEN}>", "550 5.1.1 unknown"),
        ("DATA", HANG_UP),
        (".", "451 4.3.0 later"),
        (".", "554 5.7.1 virus"),
    ],
)
async def test_what_the_next_hop_does_not_take_is_tried_again_at_once(
    alice: Alice, bob_on_sqlite: Bob, command: str, answer: Answer
) -> None:
    bob = bob_on_sqlite
    sealed = await alice.seal(BEN, BEA)
    bob.hop.instead[command] = [answer] * 2
    async with bob.running() as relay:
        assert (await submit(relay, sealed)).code != 250
        bob.hop.instead.clear()
        assert (await submit(relay, sealed)).code == 250
    assert bob.got == [(ANN, (BEN,))]


@pytest.mark.in_process
@pytest.mark.parametrize(
    ("whose", "method", "error"),
    [
        (PolicySet, "require", RuntimeError("a fault of ours")),
        (mime, "marked", RuntimeError("a fault of ours")),
        (Arrivals, "with_results", RuntimeError("a fault of ours")),
        (AttemptRows, "_find", StoreUnavailable("disk full")),
    ],
)
async def test_whatever_fails_between_opening_and_handing_on_holds_the_mail_once(
    alice: Alice, bob: Bob, monkeypatch: pytest.MonkeyPatch, whose: object, method: str, error: Exception
) -> None:
    bob.add("[dkim]\n")
    sealed = await alice.seal(BEN, BEA)
    async with bob.running() as relay:
        with monkeypatch.context() as patched:
            patched.setattr(whose, method, raising(error))
            assert (await submit(relay, sealed, recipients=[BEN, BEA])).code == 451
        assert (await submit(relay, sealed, recipients=[BEN, BEA])).code == 250
    assert bob.got == [(ANN, (BEN, BEA))]


@pytest.mark.in_process
async def test_where_the_quarantine_is_full_a_stranger_is_held_and_the_named_one_has_the_mail_once(
    alice: Alice, bob: Bob, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = await alice.seal()
    async with bob.running("incoming_lmtp") as relay:
        with monkeypatch.context() as patched:
            patched.setattr(Triage, "cannot_open", raising(QuarantineFull("no room")))
            replies = await submit_lmtp(relay, sealed, recipients=[EVE, BEN])
            assert [reply.code for reply in replies] == [452 if replies[0].code == 452 else 451, 250]
        [reply] = await submit_lmtp(relay, sealed, recipients=[EVE])
        assert reply.code == 250
    assert bob.got == [(ANN, (BEN,))]
    assert await bob.reasons() == ["redirected"]


@pytest.mark.in_process
async def test_a_mail_that_is_too_weak_and_finds_no_room_is_tried_again_at_once(
    alice: Alice, bob: Bob, monkeypatch: pytest.MonkeyPatch
) -> None:
    bob.site.write_policies({"default.toml": 'levels = ["aes"]\nrequire = "otp"\nunprotected = "quarantine"\n'})
    sealed = await alice.seal()
    async with bob.running() as relay:
        with monkeypatch.context() as patched:
            patched.setattr(Triage, "unprotected", raising(QuarantineFull("no room")))
            assert (await submit(relay, sealed)).code in (451, 452)
        assert (await submit(relay, sealed)).code == 250
    assert (bob.got, await bob.reasons()) == ([], ["unprotected"])


async def test_a_mail_in_a_loop_that_was_put_aside_can_be_released_where_more_hops_are_allowed_later(
    alice: Alice, bob_on_sqlite: Bob
) -> None:
    bob, hops = bob_on_sqlite, b"Received: from a by b; Wed, 25 Nov 2026 10:00:00 +0000\r\n" * 20
    sealed = await alice.seal(message=hops + mails.plain())
    bob.configure("[incoming]", "[incoming]\nmax_hops = 10")
    header, body = mime.split(sealed)
    outer = b"".join(raw for name, raw in mime.fields(header) if name != b"received") + b"\r\n" + body
    async with bob.running() as relay:
        assert (await submit(relay, outer)).code == 250
    [kept] = await bob.kept()
    assert "Received fields, the mail is in a loop" in kept.cause
    bob.configure("max_hops = 10", "max_hops = 50")
    status, err, _ = await run("quarantine", "release", kept.id, "--config", bob.site.config_file)
    assert (status, err, bob.got) == (0, "", [(ANN, (BEN,))])


async def wait_in_quarantine(alice: Alice, bob: Bob) -> bytes:
    """A sealed mail that may be released: what kept it out is gone."""
    bob.configure("[peers.alice]", '[peers.alice]\naccept = ["pqc"]')
    sealed = await alice.seal()
    async with bob.running() as relay:
        assert (await submit(relay, sealed)).code == 250
    bob.configure('accept = ["pqc"]', "")
    return sealed


async def release(bob: Bob) -> Released:
    """Releases what is in quarantine, in this process."""
    async with assembly.parts(bob.site.config, prefetch=False) as parts:
        [kept] = await parts.store.quarantine.all()
        hop = parts.next_hops["incoming"]
        decide = Releaser(parts.store.quarantine, parts.originals, hop, parts.audit, 50, "me")
        return await decide.release(kept, kept.envelope.recipients)


@pytest.mark.parametrize("fault", [StoreUnavailable("disk full"), asyncio.CancelledError()], ids=["fails", "cancelled"])
async def test_a_release_that_fails_may_be_tried_again_at_once(
    alice: Alice, bob: Bob, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    await wait_in_quarantine(alice, bob)
    for whose, method in ((mime, "marked"), (Audit, "record"), (NextHop, "deliver")):
        with monkeypatch.context() as patched:
            patched.setattr(whose, method, raising(fault))
            with pytest.raises(type(fault)):
                await release(bob)
    bob.hop.instead["."] = ["451 4.3.0 later"]
    with pytest.raises(NextHopUnavailable):
        await release(bob)
    assert (await release(bob)).over
    assert (bob.got, await bob.kept()) == ([(ANN, (BEN,))], [])


async def test_a_release_while_the_mail_is_being_delivered_says_so_and_changes_nothing(alice: Alice, bob: Bob) -> None:
    sealed = await wait_in_quarantine(alice, bob)
    bob.hop.instead["MAIL"] = [SILENCE]
    async with bob.running() as relay:
        client = asyncio.create_task(submit(relay, sealed))
        while not any(each.startswith("MAIL") for each in bob.hop.commands):
            await bob.hop.changed()
        with pytest.raises(DeliveryUnderWay, match="it is being delivered at this moment"):
            await release(bob)
        await bob.hop.hang_up()
        assert (await client).code == 451
    assert len(await bob.kept()) == 1
    assert (await release(bob)).over


# --- killed --------------------------------------------------------------------------------------------


@pytest.mark.in_process
@pytest.mark.parametrize("level", ["otp", "aes"])
async def test_killed_between_binding_and_handing_on_the_key_opens_nothing_else_and_the_retry_delivers(
    alice: Alice, bob: Bob, level: str
) -> None:
    same = alice.with_the_same_keys()
    sealed, other = [await same.seal(level=level, message=mails.plain(body=f"{each}\r\n")) for each in ("one", "two")]
    bob.hop.instead["MAIL"] = [SILENCE]
    async with bob.process() as relay:
        client = asyncio.create_task(submit(relay.addresses["incoming"], sealed))
        while not any(each.startswith("MAIL") for each in bob.hop.commands):
            await bob.hop.changed()
        relay.kill()
        await asyncio.gather(client, return_exceptions=True)
    async with bob.process() as relay:
        incoming = relay.addresses["incoming"]
        assert (await submit(incoming, other)).code == 250
        if bob.backend.name == "postgresql":  # others may be at work there
            assert str(await submit(incoming, sealed)).startswith("451 4.3.2")
            await bob.backend.end_leases()
        assert (await submit(incoming, sealed)).code == 250
    assert [each.message.endswith(b"one\r\n") for each in bob.hop.got] == [True]
    assert await bob.reasons() == ["key-used"]


@pytest.mark.promise("A killed relay sends nothing twice")
@pytest.mark.parametrize("field", [b"", b"Message-ID: <1@alice.example>\r\n"], ids=["without Message-ID", "with it"])
async def test_killed_before_the_store_knew_that_it_was_handed_on_a_mail_comes_to_no_copy_of_it(
    alice: Alice, bob_on_sqlite: Bob, sink: Sink, field: bytes
) -> None:
    """Its sealed envelope tells it from any other mail, whatever its header says."""
    message = field + b"From: ann@alice.example\r\nSubject: a script's report\r\n\r\nall is well\r\n"
    bob, sealed, sink.gate = bob_on_sqlite, await alice.seal(message=message), asyncio.Event()
    bob.configure(f'"{bob.hop.address}"', f'"{sink.address}"')
    async with bob.process() as relay:
        client = asyncio.create_task(submit(relay.addresses["incoming"], sealed))
        await sink.reached.wait()
        with closing(sqlite3.connect(bob.site.directory / "relay.db", isolation_level=None)) as somebody:
            somebody.execute("BEGIN IMMEDIATE")  # so nothing of it can be in there
            sink.gate.set()
            assert (await client).code == 250
            relay.kill()
            await relay.process.wait()
    async with bob.process() as relay:
        assert (await until_settled(relay.addresses["incoming"], sealed)).code == 250
        assert (await submit(relay.addresses["incoming"], sealed, sender=OUTSIDER)).code == 250
    assert len(sink.got) == 1


# --- answers -------------------------------------------------------------------------------------------


def flipped(message: bytes) -> bytes:
    der = mime.sealed_content(message)
    return mime.sealed_message(message, der[:-1] + bytes([der[-1] ^ 1]))


@pytest.mark.parametrize("action", ["keep", "refuse"])
async def test_once_the_keys_were_looked_at_all_answers_are_the_same(
    alice: Alice, bob_on_sqlite: Bob, action: str
) -> None:
    """Delivered, delivered before, redirected, forged, under a used key, too weak, of another domain, in a loop."""
    bob, same = bob_on_sqlite, alice.with_the_same_keys()
    bob.add(f'[quarantine]\naction = "{action}"')
    bob.configure("[incoming]", "[incoming]\nmax_hops = 10")
    bob.configure("[peers.alice]", '[peers.alice]\naccept = ["aes", "pqc"]')
    bob.site.write_policies(
        {"default.toml": 'levels = ["aes"]\n', "alice.example/weak.toml": 'levels = ["aes"]\nrequire = "otp"\n'}
    )
    hops = b"Received: from a by b; Wed, 25 Nov 2026 10:00:00 +0000\r\n" * 20
    named = await same.seal()
    everything = {
        "delivered": (named, BEN),
        "delivered before": (named, BEN),
        "redirected": (named, EVE),
        "key-used": (await same.seal(message=mails.plain(body="other\r\n")), BEN),
        "tampered": (flipped(await alice.seal()), BEN),
        "not-accepted": (await alice.seal(level="rsa"), BEN),
        "unprotected": (await alice.seal(sender="weak@alice.example"), BEN),
        "of another domain": (await alice.seal(sender=OUTSIDER), BEN),
        "in a loop": (without_received(await alice.seal(message=hops + mails.plain())), BEN),
    }
    async with bob.running() as relay:
        replies = {
            what: await until_settled(relay, message, recipients=[to]) for what, (message, to) in everything.items()
        }
    assert alike(list(replies.values())), replies
    assert bob.got == [(ANN, (BEN,))]
    assert await bob.reasons() == sorted(
        ["redirected", "redirected", "key-used", "tampered", "not-accepted", "unprotected", "unknown-format"]
    )


def without_received(message: bytes) -> bytes:
    return mime.without_fields(message, frozenset({b"received"}))


async def test_mail_whose_keys_may_still_come_is_held_for_all_recipients(
    alice: Alice, bob_on_sqlite: Bob, kmes: DevelopmentKMEs
) -> None:
    bob, sealed = bob_on_sqlite, await alice.seal()
    await kmes.stop()
    async with bob.running() as relay:
        replies = [await submit(relay, sealed, recipients=[each]) for each in (BEN, EVE)]
    assert (replies[0].code, alike(replies)) == (451, True)


async def test_a_try_that_is_cancelled_at_any_moment_keeps_nobody_from_the_mail(alice: Alice, bob: Bob) -> None:
    async with assembly.parts(bob.site.config, prefetch=False) as parts:
        incoming = assembly.incoming_recipe(parts)
        for steps in range(0, 120, 4):
            sealed = await alice.seal(message=mails.plain(body=f"{steps}\r\n"))
            mail = Mail(Envelope(ANN, (Recipient(BEN),)), sealed)
            task = asyncio.create_task(incoming.process(mail))
            for _ in range(steps):
                await asyncio.sleep(0)
            # There the next hop has the content, and nobody knows yet whether it has taken it.
            unknown = not task.done() and "_ClientTransaction.read_verdict" in waiting_in(task.get_coro())
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            while isinstance((outcomes := await incoming.process(replace(mail, id="again")))[0], KeyNotFound):
                pass  # the key that came for the first try is on its way into the store
            assert outcomes == (None,)
            copies = [each for each in bob.hop.got if each.message.endswith(f"\r\n{steps}\r\n".encode())]
            assert len(copies) == 1 or (unknown and len(copies) == 2)
