"""Two relays of one site on one PostgreSQL: whatever becomes of one of them, each recipient gets a mail once.
Standard: RFC 5321 6.1; leases are cut short, so that what takes a minute takes seconds.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from relay.forward import stuffed
from relay.journey.deliveries import SERVED_ELSEWHERE_S
from relay.kme import DevelopmentKMEs, LinkSettings
from relay.store.secret import SiteSecret
from tests.testlib import mails
from tests.testlib.databases import Backend, PostgreSQLServer
from tests.testlib.sink import Sink
from tests.testlib.sites import RelayProcess, Site, make_site, relay_process
from tests.testlib.submit import SMTPReply, submit, submit_lmtp, talking
from tests.testlib.wire import Wire

BEN, BEA, PRESS = "ben@bob.example", "bea@bob.example", "press@open.example"
SHORT_LEASES = """
from relay.store import claims
claims.LEASE_S, claims.RENEW_S, claims.PATIENCE_S, claims.MARGIN_S = 2.5, 0.2, 1.0, 0.3
"""
LATE_ANSWERS = """
import asyncio, pathlib
from relay.entry.smtp.session import SMTPSession
answer = SMTPSession._answer

async def late(self, *what):
    if pathlib.Path({file!r}).exists():
        await asyncio.sleep(0.5)
    await answer(self, *what)

SMTPSession._answer = late
"""
"""As a busy event loop has it, while there is this file."""


@pytest.fixture
async def kmes(tmp_path: Path) -> AsyncIterator[DevelopmentKMEs]:
    """KMEs without further slaves, so that none is tried with keys that count."""
    link = LinkSettings(key_rate=1_000_000, max_sae_id_count=0)
    async with DevelopmentKMEs(state_dir=tmp_path / "kme", host="127.0.0.1", ports=(0, 0), link=link) as servers:
        yield servers


@dataclass
class Relays:
    """Alice's two, both handing on to `wire`; the first one reaches the database by `to_store`, and answers late where
    there is a file `answers_late`."""

    one: RelayProcess
    two: RelayProcess
    to_store: Wire
    wire: Sink
    direction: str
    answers_late: Path

    async def send(self, relay: RelayProcess, *recipients: str, message: bytes = mails.plain()) -> SMTPReply:
        """One try of a mail server."""
        return await submit(relay.addresses[self.direction], message, recipients=recipients or [BEN])

    async def until_sent(self, relay: RelayProcess, *recipients: str) -> None:
        """A mail server that tries for as long as it must."""
        async with asyncio.timeout(30):
            while (reply := await self.send(relay, *recipients)).code != 250:
                assert reply.code == 451, reply
                await asyncio.sleep(0.05)

    @property
    def delivered(self) -> Counter[str]:
        """How many copies each recipient has."""
        return Counter(recipient for got in self.wire.got for recipient in got.recipients)


@pytest.fixture(params=["outgoing"])
async def relays(
    request: pytest.FixtureRequest, tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink, postgresql: Backend,
    postgresql_server: PostgreSQLServer,
) -> AsyncIterator[Relays]:  # fmt: skip
    async with AsyncExitStack() as stack:
        to_store = await stack.enter_async_context(Wire(postgresql_server.directory / ".s.PGSQL.5432"))
        one = make_site(
            tmp_path / "one", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address,
            incoming=wire.address, kme_settings="prefetch = false\none_batch_at_a_time = false",
            policies={"default.toml": 'levels = ["aes"]\n', "open.example.toml": 'levels = ["plaintext"]\n'},
        )  # fmt: skip
        SiteSecret.load_or_create(one.config.store.secret)
        shutil.copytree(one.directory, tmp_path / "two")
        two = Site(tmp_path / "two")
        urls = {one: f"postgresql://relay@{to_store.address}/postgres", two: postgresql_server.url()}
        for site, url in urls.items():
            text = site.config_file.read_text()
            text = text.replace('database = "relay.db"', f'database = "{url}"')
            site.config_file.write_text(text.replace("[outgoing]", '[outgoing]\nlmtp = "127.0.0.1:0"', 1))
        answers_late = tmp_path / "answers are late"
        late = LATE_ANSWERS.format(file=str(answers_late))
        first, second = [
            await stack.enter_async_context(relay_process(site, before=before))
            for site, before in ((one, SHORT_LEASES + late), (two, SHORT_LEASES))
        ]
        yield Relays(first, second, to_store, wire, request.param, answers_late)


def issued(kmes: DevelopmentKMEs) -> float:
    return kmes.link.issued.total()


@pytest.mark.promise("A killed relay sends nothing twice")
@pytest.mark.parametrize("relays", ["outgoing", "incoming"], indirect=True)
async def test_two_relays_that_get_the_same_mail_at_once_deliver_it_once_under_one_key(
    relays: Relays, kmes: DevelopmentKMEs
) -> None:
    relays.wire.gate = asyncio.Event()
    messages = [mails.plain(body=f"number {number}\r\n") for number in range(60)]
    tries = [
        [asyncio.create_task(relays.send(relay, BEN, BEA, message=message)) for relay in (relays.one, relays.two)]
        for message in messages
    ]
    for pair in tries:  # one of them is told to come again while the other one delivers
        [first], _ = await asyncio.wait(pair, return_when=asyncio.FIRST_COMPLETED)
        assert str(first.result()).startswith("451 4.3.2")
    relays.wire.gate.set()
    for pair in tries:
        assert sorted(each.code for each in await asyncio.gather(*pair)) == [250, 451]
    assert relays.delivered == {BEN: 60, BEA: 60}
    assert issued(kmes) == (60 if relays.direction == "outgoing" else 0)


async def test_a_retry_that_reaches_the_other_relay_completes_what_failed_with_the_form_that_was_sealed(
    relays: Relays, kmes: DevelopmentKMEs
) -> None:
    relays.wire.on_rcpt = {BEN: "451 4.2.0 busy"}
    assert (await relays.send(relays.one, BEN, PRESS)).code == 451
    relays.wire.on_rcpt = {}
    assert (await relays.send(relays.two, BEN, PRESS)).code == 250
    assert relays.delivered == {BEN: 1, PRESS: 1}
    assert issued(kmes) == 1


async def test_a_client_that_left_one_relay_hears_from_the_other_what_became_of_its_mail(relays: Relays) -> None:
    relays.wire.gate = asyncio.Event()
    leaving = asyncio.create_task(relays.send(relays.one))
    await relays.wire.reached.wait()
    leaving.cancel()
    assert (await relays.send(relays.two)).code == 451
    relays.wire.gate.set()
    await relays.until_sent(relays.two)
    assert relays.delivered == {BEN: 1}


@pytest.mark.promise("A client that gives up gets nothing twice at another relay")
async def test_a_client_that_gave_up_while_one_recipient_was_late_gets_nothing_twice_at_the_other_relay(
    relays: Relays,
) -> None:
    """That it has gone is only noticed when it is answered; until then nothing of its mail may be forgotten."""
    relays.answers_late.touch()
    relays.wire.gate = asyncio.Event()
    leaving = asyncio.create_task(relays.send(relays.one, BEN, PRESS))
    await relays.wire.reached.wait()
    leaving.cancel()
    relays.wire.gate.set()
    await relays.until_sent(relays.two, BEN, PRESS)
    async with asyncio.timeout(30):
        while "client_gone_before_the_answer" not in relays.one.log:
            await asyncio.sleep(0.02)
    assert relays.delivered == {BEN: 1, PRESS: 1}


@pytest.mark.promise("A client that gives up gets nothing twice at another relay")
async def test_a_client_that_gave_up_before_it_heard_of_each_recipient_repeats_none_at_the_other_relay(
    relays: Relays,
) -> None:
    relays.answers_late.touch()
    relays.wire.gate, relays.wire.on_rcpt = asyncio.Event(), {BEN: "451 4.2.0 busy"}
    async with talking(relays.one.addresses["outgoing_lmtp"]) as talk:
        await talk.begin(BEN, PRESS, hello="LHLO")
        await talk.send(b"".join(stuffed(mails.plain())))
        await relays.wire.reached.wait()
    relays.wire.gate.set()
    async with asyncio.timeout(30):
        while sum(relays.delivered.values()) < 1:
            await asyncio.sleep(0.01)
    relays.wire.on_rcpt = {}
    async with asyncio.timeout(30):
        while not all(
            each.code == 250
            for each in await submit_lmtp(relays.two.addresses["outgoing_lmtp"], mails.plain(), recipients=[BEN, PRESS])
        ):
            await asyncio.sleep(0.05)
    assert relays.delivered == {BEN: 1, PRESS: 1}


@pytest.mark.promise("A client that gives up gets nothing twice at another relay")
async def test_a_client_that_gave_up_while_the_database_stalled_and_was_served_by_the_other_relay_gets_nothing_twice(
    relays: Relays,
) -> None:
    """The first relay begins when the other one is done, and its client has not been gone for long."""
    relays.to_store.hold_answers()
    leaving = asyncio.create_task(relays.send(relays.one, BEN, PRESS))
    await relays.to_store.holding()
    await asyncio.sleep(0.2)  # the mail is there, too
    leaving.cancel()
    await relays.until_sent(relays.two, BEN, PRESS)
    relays.to_store.let_answers_go()
    relays.to_store.let_new_answers_go()
    async with asyncio.timeout(30):
        while not any(each in relays.one.log for each in ("mail_not_accepted", "client_gone_before_the_answer")):
            await asyncio.sleep(0.02)
    assert relays.delivered == {BEN: 1, PRESS: 1}


async def test_the_same_octets_sent_anew_are_another_mail_at_once(relays: Relays) -> None:
    for _ in range(2):
        assert (await relays.send(relays.one, BEN, PRESS)).code == 250
    await relays.until_sent(relays.two, BEN, PRESS)
    assert relays.delivered == {BEN: 3, PRESS: 3}


async def test_where_a_relay_is_killed_the_other_one_delivers_when_its_lease_is_over(relays: Relays) -> None:
    gate = relays.wire.before_content = asyncio.Event()
    sending = asyncio.create_task(relays.send(relays.one, BEN, BEA))
    await relays.wire.asked.wait()
    relays.one.kill()
    await asyncio.gather(sending, return_exceptions=True)
    assert (await relays.send(relays.two, BEN, BEA)).code == 451
    await relays.until_sent(relays.two, BEN, BEA)
    gate.set()
    assert relays.delivered == {BEN: 1, BEA: 1}
    assert "delivery_interrupted" in relays.two.log


@pytest.mark.parametrize(
    ("relays", "trouble"), [("outgoing", "frozen"), ("incoming", "cut off from the store")], indirect=["relays"]
)
async def test_a_relay_that_was_out_of_touch_for_longer_than_its_lease_does_not_deliver_what_another_one_has(
    relays: Relays, trouble: str
) -> None:
    gate = relays.wire.before_content = asyncio.Event()
    sending = asyncio.create_task(relays.send(relays.one, BEN, BEA))
    await relays.wire.asked.wait()
    if trouble == "frozen":
        relays.one.process.send_signal(signal.SIGSTOP)
    else:
        await relays.to_store.cut()
    await relays.until_sent(relays.two, BEN, BEA)
    gate.set()
    relays.one.process.send_signal(signal.SIGCONT)
    assert (await sending).code == 451
    assert relays.delivered == {BEN: 1, BEA: 1}
    await relays.to_store.mend()
    await relays.until_sent(relays.one, PRESS)
    assert relays.delivered == {BEN: 1, BEA: 1, PRESS: 1}


async def test_what_one_relay_has_delivered_while_the_database_was_away_is_not_delivered_by_the_other(
    relays: Relays, postgresql_server: PostgreSQLServer, kmes: DevelopmentKMEs
) -> None:
    gate = relays.wire.gate = asyncio.Event()
    relays.wire.on_rcpt = {BEN: "451 4.2.0 busy"}
    sending = asyncio.create_task(relays.send(relays.one, BEN, PRESS))
    await relays.wire.reached.wait()
    await asyncio.to_thread(postgresql_server.stop)
    gate.set()
    assert (await sending).code == 451
    assert (await relays.send(relays.two, BEN, PRESS)).code == 451
    await asyncio.to_thread(postgresql_server.start)
    relays.wire.on_rcpt = {}
    await relays.until_sent(relays.two, BEN, PRESS)
    assert relays.delivered == {BEN: 1, PRESS: 1}
    assert issued(kmes) == 1


async def test_a_mail_that_a_frozen_relay_reads_after_its_client_was_served_by_the_other_is_not_delivered_again(
    relays: Relays,
) -> None:
    async with talking(relays.one.addresses["outgoing"]) as talk:
        await talk.begin()
        relays.one.process.send_signal(signal.SIGSTOP)
        await talk.send(b"".join(stuffed(mails.plain())))
        await asyncio.sleep(SERVED_ELSEWHERE_S)  # how long it lies there
    assert (await relays.send(relays.two)).code == 250
    relays.one.process.send_signal(signal.SIGCONT)
    async with asyncio.timeout(60):
        while not any(each in relays.one.log for each in ("mail_not_accepted", "client_gone_before_the_answer")):
            await asyncio.sleep(0.02)
    assert relays.delivered == {BEN: 1}


@pytest.mark.parametrize("lies", [False, True])
async def test_a_client_that_only_sends_no_more_is_served_unless_its_mail_has_lain_there_for_long(
    relays: Relays, lies: bool
) -> None:
    async with talking(relays.one.addresses["outgoing"]) as talk:
        await talk.begin()
        if lies:
            relays.one.process.send_signal(signal.SIGSTOP)
        talk.writer.write(b"".join(stuffed(mails.plain())))
        talk.writer.write_eof()
        if lies:
            await asyncio.sleep(1.2 * SERVED_ELSEWHERE_S)
            relays.one.process.send_signal(signal.SIGCONT)
        assert str(await talk.reply()).startswith("451 4.3.2" if lies else "250")
    await relays.until_sent(relays.two)
    assert relays.delivered == {BEN: 1}, "whether it was heard is not known, and a retry repeats nothing"
