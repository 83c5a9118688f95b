"""Sealed mail that arrives through the milter: opened in place where that is safe, else by the next hop, and once.
Standard: relay/FORMAT.md; what a mail server keeps goes from the sender and with the parameters that it was told.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import miltertest
import pytest

from relay.config import TCPAddress
from relay.errors import QuarantineFull
from relay.formats import mime
from relay.kme import DevelopmentKMEs
from relay.mail import Envelope, Mail, Recipient
from relay.process import assembly
from tests.integration.entry.milter.mta import MTA, Answer, Field, in_thread
from tests.integration.entry.milter.organisations import MILTER
from tests.testlib import mails
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site, serving

ANN, BEN, BEA, EVE = "<ann@alice.example>", "<ben@bob.example>", "<bea@bob.example>", "<eve@bob.example>"
OPENED = b"X-QuMail-Protection: aes; peer=alice; author=peer\r\n" + mails.plain()


@dataclass
class Place:
    """Bob's milter, and a sealed mail for Ben and Bea as the mail server there has it."""

    address: TCPAddress
    fields: list[Field]
    body: str
    bob: assembly.Parts
    sink: Sink

    async def mail(
        self, *, sender: str = ANN, recipients: Sequence[str] = (BEN, BEA), goes_on: bool = True
    ) -> tuple[Answer, bytes]:
        """The answer, and the message afterwards; a mail server that does not go on is gone before it has read it."""

        def whole() -> Answer:
            mta = MTA(self.address)
            mta.negotiate()
            answer = mta.mail(self.fields, self.body, sender=sender, recipients=recipients)
            if goes_on:
                mta.abort()
            mta.close()
            return answer

        answer = await in_thread(whole)
        while "being delivered already" in answer.text:  # what the last one has heard is noted a moment later
            answer = await in_thread(whole)
        assert isinstance(answer, Answer)
        return answer, answer.applied(self.fields, self.body)

    async def reasons(self) -> list[str]:
        """Why there is something in quarantine."""
        return [each.reason for each in await self.bob.store.quarantine.all()]


@asynccontextmanager
async def place_of(
    directory: Path, kmes: DevelopmentKMEs, sink: Sink, original: bytes = mails.plain(), on_the_way: bytes = b""
) -> AsyncIterator[Place]:
    """`on_the_way` are the fields that mail servers have put on top since the original was sealed."""
    alice = make_site(directory / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address)
    bob = make_site(
        directory / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=sink.address, settings=MILTER
    )
    async with assembly.parts(alice.config, prefetch=False) as parts:
        recipients = (Recipient("ben@bob.example"), Recipient("bea@bob.example"))
        sealed = await parts.sealer.seal(Mail(Envelope("ann@alice.example", recipients), original))
        header, body = mime.split(on_the_way + sealed.copies[0].message)
    fields = [
        (name.decode(), value.decode().removesuffix("\r\n").replace("\r\n", "\n"))
        for name, _, value in (raw.partition(b":") for _, raw in mime.fields(header))
    ]
    async with serving(bob) as addresses, assembly.parts(bob.config, prefetch=False) as beside:
        try:
            yield Place(addresses["incoming_milter"], fields, body.decode(), beside, sink)
        finally:
            MTA.close_all()


@pytest.fixture
async def place(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> AsyncIterator[Place]:
    async with place_of(tmp_path, kmes, sink) as running:
        yield running


async def test_a_sealed_mail_is_opened_in_its_place_once_and_its_copies_are_dropped(place: Place) -> None:
    answer, message = await place.mail()
    assert (answer.word, mails.unproven(message), answer.removed()) == (miltertest.SMFIR_ACCEPT, OPENED, [])
    for _ in range(2):
        answer, _ = await place.mail()
        assert answer.word == miltertest.SMFIR_DISCARD
    assert (place.sink.got, await place.reasons()) == ([], [])


WAY = [b"Received: from %d.example by mx;\r\n\tWed, 25 Nov 2026 10:00:00 +0000\r\n" % number for number in range(9)]


@pytest.mark.parametrize(
    ("since", "before"),
    [(0, range(1, 3)), (2, range(2, 5)), (2, range(2)), (1, [1, 1, 2, 1]), (3, [])],
    ids=["nobody since", "servers since", "a loop", "one twice", "none before"],
)  # fmt: skip
async def test_the_way_of_an_opened_mail_is_there_once_and_in_its_order(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, since: int, before: Sequence[int]
) -> None:
    """What the original had on top it has under its mark; what was added since stands above."""
    way = [WAY[number] for number in before]
    original = b"".join(way) + mails.plain()
    on_the_way = b"".join(WAY[6 : 6 + since])
    async with place_of(tmp_path, kmes, sink, original, on_the_way) as place:
        _, message = await place.mail()
    mark = OPENED.removesuffix(mails.plain())
    assert mails.unproven(message) == on_the_way + mark + original


async def test_a_mail_server_that_was_gone_before_it_could_hear_gets_the_mail_again(place: Place) -> None:
    """It has nothing, and its client tries again: that is no copy."""
    for goes_on in (False, False, True):
        answer, message = await place.mail(goes_on=goes_on)
        assert (answer.word, mails.unproven(message)) == (miltertest.SMFIR_ACCEPT, OPENED)
    answer, _ = await place.mail()
    assert answer.word == miltertest.SMFIR_DISCARD


@pytest.mark.parametrize(
    ("sender", "recipient"),
    [
        ("<outsider@stranger.example>", BEN),
        ("<>", BEN),
        (ANN, f"{BEN} NOTIFY=SUCCESS"),
        (ANN, f"{BEN} NOTIFY=SUCCESS,DELAY"),
    ],
)
async def test_a_mail_that_the_server_would_send_from_somebody_else_or_tell_of_goes_by_the_next_hop(
    place: Place, sender: str, recipient: str
) -> None:
    """There it is from the sealed sender, and nobody is told that it arrived."""
    for _ in range(2):
        answer, _ = await place.mail(sender=sender, recipients=[recipient])
        assert answer.word == miltertest.SMFIR_DISCARD
    [got] = place.sink.got
    assert (got.sender, got.recipients) == ("ann@alice.example", ("ben@bob.example",))
    assert mails.unproven(got.message).endswith(OPENED)


async def test_other_notices_leave_it_in_its_place(place: Place) -> None:
    answer, message = await place.mail(recipients=[f"{BEN} NOTIFY=FAILURE,DELAY", f"{BEA} NOTIFY=NEVER"])
    assert (answer.word, mails.unproven(message), place.sink.got) == (miltertest.SMFIR_ACCEPT, OPENED, [])


async def test_who_is_not_named_is_removed_and_who_has_it_already_too(place: Place) -> None:
    answer, message = await place.mail(recipients=[BEN, EVE])
    assert (answer.word, mails.unproven(message), answer.removed()) == (miltertest.SMFIR_ACCEPT, OPENED, [EVE])
    answer, message = await place.mail(recipients=[BEN, BEA])
    assert (answer.word, mails.unproven(message), answer.removed()) == (miltertest.SMFIR_ACCEPT, OPENED, [BEN])
    assert await place.reasons() == ["redirected"]


async def test_a_mail_for_a_stranger_alone_is_dropped_and_kept(place: Place) -> None:
    answer, _ = await place.mail(recipients=[EVE])
    assert (answer.word, await place.reasons()) == (miltertest.SMFIR_DISCARD, ["redirected"])


@pytest.mark.in_process
async def test_where_nothing_is_put_in_place_because_of_another_recipient_the_retry_gets_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mail server refuses the whole mail then: nobody has it."""
    with monkeypatch.context() as patched:
        patched.setattr("relay.quarantine.triage.Triage.cannot_open", _full)
        answer, _ = await place.mail(recipients=[BEN, EVE])
        assert answer.word == miltertest.SMFIR_REPLYCODE
        assert answer.text.startswith("45")
    answer, message = await place.mail(recipients=[BEN, EVE])
    assert (answer.word, mails.unproven(message), answer.removed()) == (miltertest.SMFIR_ACCEPT, OPENED, [EVE])


async def _full(*_: object) -> None:
    raise QuarantineFull("no room")
