"""Real mail at every level and combination, with the real KM client against the development KMEs.
Standard: Bob's SHA-256 is Alice's; both sides name the same keys; the wire and the logs hold nothing of the text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from relay.config import TCPAddress
from relay.formats import cms, mime
from relay.kme import DevelopmentKMEs
from relay.levels import LEVELS, SIGNED
from tests.testlib import mails
from tests.testlib.identities import Identities
from tests.testlib.sink import Sink
from tests.testlib.sites import RelayProcess, make_site, relay_process
from tests.testlib.submit import SMTPReply, submit

COMBINATIONS = {
    level.name: (f'levels = ["{level.name}"]', level.name, level.quantum) for level in LEVELS
} | {
    f"{name}-required": (f'levels = ["{name}+aes"]', f"{name}+aes", True) for name in sorted(SIGNED)
} | {
    "pqc-preferred": ('levels = ["pqc+aes", "pqc"]', "pqc+aes", True),
    "by-number": ("levels = [3]\n", "pqc", False),
}  # fmt: skip
POLICIES = {"default.toml": 'levels = ["aes"]\n'} | {
    f"bob.example/{name}.toml": f"{text}\n" for name, (text, _, _) in COMBINATIONS.items()
}


class Journey:
    """Alice's relay, a wire that keeps what passed, Bob's relay, and the sink at the end."""

    def __init__(self, alice: RelayProcess, bob: RelayProcess, wire: Sink, sink: Sink) -> None:
        self.alice, self.bob, self.wire, self.sink = alice, bob, wire, sink

    async def send(self, name: str, message: bytes) -> bytes:
        """Sends at one combination; what Bob's relay made of it."""
        reply = await submit(self.alice.addresses["outgoing"], message, recipients=[f"{name}@bob.example"])
        assert reply.code == 250, (reply, self.alice.log[-2000:])
        onward = await submit(
            self.bob.addresses["incoming"], self.wire.got[-1].message, recipients=[f"{name}@bob.example"]
        )
        assert onward.code == 250, (onward, self.bob.log[-2000:])
        return self.sink.got[-1].message

    def event(self, relay: RelayProcess, name: str) -> dict[str, object]:
        events: list[dict[str, object]] = [json.loads(line) for line in relay.log.splitlines()]
        return [event for event in events if event["event"] == name][-1]


@pytest.fixture
async def path(
    tmp_path: Path, kmes: DevelopmentKMEs, identities: Identities, wire: Sink, sink: Sink
) -> AsyncIterator[Journey]:
    first, second = kmes.urls
    async with AsyncExitStack() as stack:
        relays = []
        for name, url, hops in (
            ("alice", first, {"outgoing": wire.address}),
            ("bob", second, {"incoming": sink.address}),
        ):
            next_hops: dict[str, TCPAddress] = dict(hops)
            site = make_site(
                tmp_path / name, name, state=kmes.state_dir, kme_url=url, policies=POLICIES, identities=identities,
                outgoing=next_hops.get("outgoing"), incoming=next_hops.get("incoming"),
            )  # fmt: skip
            relays.append(await stack.enter_async_context(relay_process(site)))
        yield Journey(relays[0], relays[1], wire, sink)


async def test_every_combination_gives_bob_what_alice_sent(path: Journey) -> None:
    messages = [mails.plain(), mails.eight_bit(), mails.random_attachment(40_000)]
    for name, (_, protection, quantum) in COMBINATIONS.items():
        for message in messages:
            mark, _, opened = mails.untraced(await path.send(name, message)).partition(b"\r\n")
            assert hashlib.sha256(opened).digest() == hashlib.sha256(message).digest(), name
            assert mark.decode() == f"X-QuMail-Protection: {protection}; peer=alice; author=peer"
            sent, received = path.event(path.alice, "sealed_and_sent"), path.event(path.bob, "opened_and_sent")
            assert sent["protection"] == received["protection"] == protection
            assert sent["key_IDs"] == received["key_IDs"]
            assert bool(sent["key_IDs"]) is quantum
    everything = b"".join(got.message for got in path.wire.got)
    for marker in (b"figures", b"Quarterly", b"Confidential", "Grüße".encode()):
        assert marker not in everything
        assert marker.decode() not in path.alice.log + path.bob.log


async def test_the_outer_layer_of_an_enhanced_message_is_a_quantum_key_and_the_inner_a_certificate(
    path: Journey,
) -> None:
    await path.send("pqc-required", mails.plain())
    enveloped = cms.decode_enveloped(mime.sealed_content(path.wire.got[-1].message))
    assert all(isinstance(recipient, cms.KEKRecipient) for recipient in enveloped.recipients)
    await path.send("pqc", mails.plain())
    enveloped = cms.decode_enveloped(mime.sealed_content(path.wire.got[-1].message))
    assert all(isinstance(recipient, cms.KEMRecipient) for recipient in enveloped.recipients)


@pytest.mark.in_process
async def test_without_quantum_keys_required_holds_and_preferred_goes_on(path: Journey, kmes: DevelopmentKMEs) -> None:
    await kmes.stop()
    try:
        outgoing = path.alice.addresses["outgoing"]
        replies: list[SMTPReply] = []
        while not replies or replies[-1].code == 250:  # keys that were in the pool serve the first
            replies.append(await submit(outgoing, mails.plain(), recipients=["aes@bob.example"]))
        assert str(replies[-1]).startswith("451 4.7.5")
        assert (await submit(outgoing, mails.plain(), recipients=["pqc-preferred@bob.example"])).code == 250
        assert path.event(path.alice, "downgraded")["protection"] == "pqc"
        required = await submit(outgoing, mails.plain(), recipients=["pqc-required@bob.example"])
        assert str(required).startswith("451 4.7.5")
        assert (await submit(outgoing, mails.plain(), recipients=["rsa@bob.example"])).code == 250
    finally:
        await kmes.start()


@pytest.mark.parametrize("name", ["otp", "aes", "pqc", "rsa-required"])
async def test_what_was_captured_and_is_sent_again_to_anybody_delivers_nothing(path: Journey, name: str) -> None:
    await path.send(name, mails.plain())
    captured = path.wire.got[-1].message
    for recipient in (f"{name}@bob.example", "eve@bob.example"):
        for sender in ("ann@alice.example", "eve@stranger.example", ""):
            reply = await submit(path.bob.addresses["incoming"], captured, sender=sender, recipients=[recipient])
            assert reply.code == 250
    assert [got.sender for got in path.sink.got] == ["ann@alice.example"]
    assert path.event(path.bob, "put_in_quarantine")["reason"] == "redirected"
    assert path.event(path.bob, "came_again")["peer"] == "alice"


async def test_a_protection_mark_from_outside_is_removed(path: Journey) -> None:
    forged = b"X-QuMail-Protection: otp; peer=alice; author=peer\r\n" + mails.plain()
    assert (await submit(path.bob.addresses["incoming"], forged, sender="x@stranger.example")).code == 250
    assert b"X-QuMail-Protection" not in path.sink.got[-1].message
    opened = await path.send("aes", forged)
    assert opened.count(b"X-QuMail-Protection") == 1
    assert mails.untraced(opened).startswith(b"X-QuMail-Protection: aes; peer=alice; author=peer\r\n")
