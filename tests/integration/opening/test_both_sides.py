"""What one relay seals the other one opens: what it would refuse is held or refused at the sender's, with the cause.
Standard: relay/FORMAT.md, 7; two relays as they stand, and Bob's next hop or quarantine behind them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from structlog.testing import LogCapture

from relay.config import TCPAddress
from relay.kme import DevelopmentKMEs
from relay.store.secret import SiteSecret
from relay.store.store import open_store
from tests.integration.opening.conftest import ANN, BEN
from tests.integration.test_refusals import causes
from tests.testlib import mails
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site, serving
from tests.testlib.submit import submit_lmtp

U_LABEL, A_LABEL, DECOMPOSED = "b\u00fccher.example", "xn--bcher-kva.example", "bu\u0308cher.example"
POLICIES = {
    "default.toml": 'levels = ["aes"]\n',
    f"{A_LABEL}.toml": 'levels = ["aes"]\npeer = "bob"\n',
}


@dataclass
class Relays:
    """Alice's outgoing relay in front of Bob's incoming one; what Bob has opened is in `inbox`."""

    listener: TCPAddress
    bob: Site
    inbox: Sink

    async def send(self, *recipients: str, sender: str = ANN, message: bytes = mails.plain()) -> list[int]:
        """What Alice's relay answers for each of them."""
        utf8 = [] if f"{sender}{''.join(recipients)}".isascii() else ["SMTPUTF8"]
        replies = await submit_lmtp(self.listener, message, sender=sender, recipients=recipients, options=utf8)
        return [reply.code for reply in replies]

    @property
    def got(self) -> list[tuple[str, tuple[str, ...]]]:
        """Sender and recipients of each mail that Bob has opened."""
        return [(each.sender, each.recipients) for each in self.inbox.got]

    async def kept(self) -> list[str]:
        """Why mail is in Bob's quarantine."""
        config = self.bob.config.store
        async with await open_store(config.database, SiteSecret.load(config.secret)) as store:
            return [each.reason for each in await store.quarantine.all()]


Starting = Callable[..., AbstractAsyncContextManager[Relays]]


@pytest.fixture
def relays(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> Starting:
    """Starts both, with these lines in each one's table of the other."""

    @asynccontextmanager
    async def start(alice: str = "", bob: str = "") -> AsyncIterator[Relays]:
        there = make_site(
            tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=sink.address,
            peer_settings=bob,
        )  # fmt: skip
        async with serving(there) as listeners:
            here = make_site(
                tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=listeners["incoming"],
                policies=POLICIES, settings='lmtp = "127.0.0.1:0"', peer_settings=alice,
            )  # fmt: skip
            async with serving(here) as addresses:
                yield Relays(addresses["outgoing_lmtp"], there, sink)

    return start


@pytest.mark.parametrize(
    "spellings",
    [
        (f"ben@{U_LABEL}", f"ben@{A_LABEL}"),
        (f"ben@{DECOMPOSED}", f"ben@{U_LABEL.upper()}", f"ben@{A_LABEL.upper()}"),
        (f'"b\\en"@{A_LABEL}', f"ben@{A_LABEL}"),
        ('"b..n"@bob.example', "b..n@bob.example", '"b..\\n"@BOB.example'),
    ],
)
async def test_one_mailbox_in_several_spellings_gets_the_mail_once(
    relays: Starting, spellings: tuple[str, ...]
) -> None:
    async with relays() as both:
        assert await both.send(*spellings) == [250] * len(spellings)
        [(_, [_])] = both.got
        assert await both.kept() == []


RECEIVED = b"Received: from a by b; Sun, 29 Nov 2026 20:00:00 +0000\r\n"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (mails.plain().replace(b"To:", b"To: x@y" + b",\r\n x@y" * 18_900 + b"\r\nX-To:", 1), 250),
        (mails.plain().replace(b"To:", b"To: x@y" + b",\r\n x@y" * 19_980 + b"\r\nX-To:", 1), 554),
        (RECEIVED * 50 + mails.plain(), 250),
    ],
    ids=["19,000 lines", "20,000 lines", "50 hops"],
)
async def test_a_header_that_is_taken_is_opened_however_long_it_is(relays: Starting, message: bytes, code: int) -> None:
    async with relays() as both:
        assert await both.send("ben@bob.example", message=message) == [code]
        assert [each.message.endswith(message) for each in both.inbox.got] == [True] * (code == 250)


@pytest.mark.parametrize("recipient", ["x\U0001fae8y@bob.example", "gr\u00fc.\u00dfe@bob.example", '"a b"@bob.example'])
async def test_an_unusual_address_gets_its_mail(relays: Starting, recipient: str) -> None:
    """U+1FAE8 is of Unicode 15, which some Pythons know, and others not."""
    async with relays() as both:
        assert await both.send(recipient) == [250]
        assert both.got == [(ANN, (recipient,))]


@pytest.mark.parametrize("recipient", ["b\u200den@bob.example", "b\ue000n@bob.example", '"b<n>"@bob.example'])
@pytest.mark.in_process
async def test_an_address_that_no_receiver_takes_is_refused_alone(
    relays: Starting, log: LogCapture, recipient: str
) -> None:
    async with relays() as both:
        assert await both.send(BEN, recipient) == [250, 554]
        assert both.got == [(ANN, (BEN,))]
        assert await both.kept() == []
    assert "the recipient's address is none" in causes(log)


@pytest.mark.parametrize(
    "sender", ["ann@mail.alice.example", "ann@localhost", "ann@[192.0.2.1]", "ann@stranger.example"]
)
@pytest.mark.in_process
async def test_mail_from_a_sender_whom_the_peer_would_not_take_is_refused_with_the_remedy(
    relays: Starting, log: LogCapture, sender: str
) -> None:
    async with relays() as both:
        assert await both.send(BEN, sender=sender) == [550]
        assert (both.got, await both.kept()) == ([], [])
    assert "none of site.domains" in causes(log)
    assert "in `takes_from` of [peers.bob]" in causes(log)


@pytest.mark.parametrize(
    ("taken", "sender"),
    [('["stranger.example"]', "ann@Stranger.Example"), ('["*"]', "ann@stranger.example"), ('["*"]', "ann@[192.0.2.1]")],
)
async def test_what_the_peer_is_known_to_take_is_sealed(relays: Starting, taken: str, sender: str) -> None:
    async with relays(alice=f"takes_from = {taken}", bob=f"forwards = {taken}") as both:
        assert await both.send(BEN, sender=sender) == [250]
        assert both.got == [(sender.lower(), (BEN,))]


@pytest.mark.parametrize("sender", ["ann@ALICE.example", "ann@alice.example.", '"an\\n"@alice.example'])
async def test_a_sender_of_ours_is_taken_however_the_address_is_written(relays: Starting, sender: str) -> None:
    async with relays() as both:
        assert await both.send(BEN, sender=sender) == [250]
        assert both.got == [(ANN, (BEN,))]


@pytest.mark.parametrize("sender", ['"a<n>n"@alice.example', "a\u200dnn@alice.example", "ann@foo..example"])
async def test_a_sender_that_no_mail_from_may_name_is_refused(relays: Starting, sender: str) -> None:
    async with relays(alice='takes_from = ["*"]', bob='forwards = ["*"]') as both:
        assert await both.send(BEN, sender=sender) == [554]
        assert (both.got, await both.kept()) == ([], [])
