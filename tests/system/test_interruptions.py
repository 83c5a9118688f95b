"""Every await of both journeys fails once, and is cancelled once: no mail is lost, none is said to be taken that is not.
Standard: RFC 5321 6.1; a mail may come twice only where the next hop had the content and its answer was not awaited.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from relay.entry import Recipe
from relay.errors import RelayError, TryLater
from relay.formats import mime
from relay.incoming import Incoming
from relay.kme import DevelopmentKMEs
from relay.mail import Envelope, Mail, Outcomes, Recipient
from relay.process import assembly
from tests.testlib import mails
from tests.testlib.identities import Identities
from tests.testlib.interruptions import Interruption
from tests.testlib.sink import Got, Sink
from tests.testlib.sites import make_site

KINDS: dict[str, Callable[[], BaseException]] = {
    "exception": lambda: RuntimeError("injected"),
    "cancellation": lambda: asyncio.CancelledError("injected"),
}
RECIPIENTS = ("aes@bob.example", "ben@bob.example", "press@open.example")
BOTH = ("ben@bob.example", "bea@bob.example")
"""Two who share one sealed mail."""
POLICIES = {
    "bob.example/aes.toml": 'levels = ["aes"]\n',
    "bob.example/ben.toml": 'levels = ["pqc+aes"]\n',
    "bob.example/bea.toml": 'levels = ["pqc+aes"]\n',
    "open.example.toml": 'levels = ["plaintext"]\n',
    "default.toml": 'levels = ["aes"]\n',
}
AMBIGUOUS = ("read_verdict",)
"""The function that waits for the answer to the content: there nobody can know whether the next hop has taken it."""


Direction = Callable[[Path, DevelopmentKMEs, Sink, Identities], AbstractAsyncContextManager["Journey"]]


class Journey:
    """One recipe with what stands behind it."""

    def __init__(self, recipe: Recipe, sink: Sink, make: Callable[[int], Awaitable[Mail]]) -> None:
        self.recipe, self.sink, self.make = recipe, sink, make

    def copies(self, mark: bytes) -> Counter[str]:
        """How often each recipient has the mail with this mark in its Message-ID."""
        return Counter(recipient for got in self.sink.got if mark in got.message for recipient in got.recipients)


def numbered(number: int) -> bytes:
    return mails.plain().replace(b"<1@alice.example>", b"<%d.mark@alice.example>" % number)


@asynccontextmanager
async def outgoing(
    directory: Path, kmes: DevelopmentKMEs, sink: Sink, identities: Identities
) -> AsyncIterator[Journey]:
    site = make_site(
        directory / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
        policies=POLICIES, identities=identities,
    )  # fmt: skip

    async def make(number: int) -> Mail:
        return _mail(numbered(number), RECIPIENTS)

    async with assembly.parts(site.config, prefetch=False) as parts:
        yield Journey(assembly.outgoing_recipe(parts), sink, make)


@asynccontextmanager
async def incoming(
    directory: Path, kmes: DevelopmentKMEs, sink: Sink, identities: Identities
) -> AsyncIterator[Journey]:
    alice = make_site(
        directory / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
        policies=POLICIES, identities=identities,
    )  # fmt: skip
    bob = make_site(
        directory / "bob",
        "bob",
        state=kmes.state_dir,
        kme_url=kmes.urls[1],
        incoming=sink.address,
        identities=identities,
    )
    async with AsyncExitStack() as stack:
        sealing = await stack.enter_async_context(assembly.parts(alice.config, prefetch=False))
        opening = await stack.enter_async_context(assembly.parts(bob.config, prefetch=False))

        async def make(number: int) -> Mail:
            [form] = (await sealing.sealer.seal(_mail(numbered(number), BOTH))).copies
            return _mail(form.message, BOTH)

        yield Journey(assembly.incoming_recipe(opening), sink, make)


class Milter:
    """A mail server that asks for what takes the place of a mail, and keeps that."""

    def __init__(self, recipe: Incoming, sink: Sink) -> None:
        self._recipe, self._sink = recipe, sink

    def check_recipient(self, sender: str, recipient: str) -> None:
        """Takes all."""

    def not_taken(self, mail: Mail, errors: Mapping[str, RelayError]) -> None:
        """Their transaction is over."""

    def client_answered(self, mail: Mail) -> None:
        """Nothing is forgotten here."""

    async def client_gone(self, mail: Mail, outcomes: Outcomes) -> None:
        """It has told its client itself."""

    async def process(self, mail: Mail) -> Outcomes:
        result = await self._recipe.in_place(mail, lambda _: True)
        if result.message is not None:
            self._sink.got.append(Got(mail.envelope.sender, result.recipients, result.message))
            assert result.taken is not None
            result.taken(True)
        return result.outcomes


@asynccontextmanager
async def in_place(
    directory: Path, kmes: DevelopmentKMEs, sink: Sink, identities: Identities
) -> AsyncIterator[Journey]:
    async with incoming(directory, kmes, sink, identities) as journey:
        assert isinstance(journey.recipe, Incoming)
        yield Journey(Milter(journey.recipe, sink), sink, journey.make)


def _mail(message: bytes, recipients: Sequence[str]) -> Mail:
    return Mail(Envelope("ann@alice.example", tuple(map(Recipient, recipients))), message, id="test")


@pytest.mark.timeout(110)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("direction", "each_answered"),
    [(outgoing, False), (outgoing, True), (incoming, False), (incoming, True), (in_place, False)],
    ids=["outgoing-smtp", "outgoing-lmtp", "incoming-smtp", "incoming-lmtp", "incoming-milter"],
)
async def test_whatever_breaks_at_whichever_await_no_mail_is_lost(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, identities: Identities,
    direction: Direction, kind: str, each_answered: bool,
) -> None:  # fmt: skip
    async with direction(tmp_path, kmes, sink, identities) as journey:
        repeated = await _break_everywhere(journey, kind, each_answered)
    for where in repeated:
        assert any(name.rpartition(".")[2] in AMBIGUOUS for name in where), f"came twice: {where}"
    if direction is outgoing:
        assert all(got.recipients == ("press@open.example",) or mime.is_sealed(got.message) for got in sink.got)


async def _break_everywhere(journey: Journey, kind: str, each_answered: bool) -> list[list[str]]:
    """One mail for each await; gives those awaits after which a mail came twice."""
    repeated: list[list[str]] = []
    at = 0
    while True:
        at += 1
        mark = b"%d.mark@" % at
        mail = replace(await journey.make(at), each_answered=each_answered)
        interruption = Interruption(at, KINDS[kind]())
        outcomes = await _tried(interruption, journey.recipe, mail)
        told = dict(zip(mail.envelope.addresses, outcomes, strict=True))
        for address, outcome in told.items():
            if outcome is None:
                assert journey.copies(mark)[address] == 1, f"250 and no mail for {address}: {interruption.where}"
        await _retried(journey.recipe, mail, told)
        copies = journey.copies(mark)
        assert set(copies) == set(mail.envelope.addresses), f"lost: {interruption.where}"
        if max(copies.values()) > 1:
            repeated.append(interruption.where)
        if not interruption.happened:
            assert at > 3
            return repeated


async def _tried(interruption: Interruption, recipe: Recipe, mail: Mail) -> Outcomes:
    """The outcomes as the entry would tell them: what raises holds all recipients."""
    try:
        return await interruption.run(recipe.process(mail))
    except RelayError as error:
        return (error,) * len(mail.envelope.recipients)
    except (RuntimeError, asyncio.CancelledError) as error:
        return (TryLater(str(error)),) * len(mail.envelope.recipients)


async def _retried(recipe: Recipe, mail: Mail, told: Mapping[str, RelayError | None]) -> None:
    """A second try without any fault, as a mail server makes it: of all where one reply was given, else of the rest."""
    rest = [each for each in mail.envelope.recipients if told[each.address] is not None]
    if not rest:
        return
    outcomes = await recipe.process(mail.to(rest) if mail.each_answered else mail)
    assert not any(outcomes), outcomes
