"""Who is held or refused at RCPT has a record, and counts, as if the mail had come: one for all alike in a transaction.
Standard: deploy/AUDIT.md; a client that names many recipients fills neither memory nor disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from relay.audit.reading import records
from relay.audit.verifying import verify
from relay.config import TCPAddress
from relay.formats import mime
from relay.kme import DevelopmentKMEs
from relay.process import app
from tests.integration.entry.milter.mta import MTA
from tests.testlib import mails
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site
from tests.testlib.status_numbers import StatusNumbers, asked, with_status
from tests.testlib.submit import Talk, submit, talking

QUEUE_ID = "4bVxY31Qz2zXk"
OPENING = (
    "LHLO mail.example", f"XFORWARD IDENT={QUEUE_ID}", "MAIL FROM:<ann@alice.example>", "RCPT TO:<zoe@held.example>",
)  # fmt: skip
PICKED_UP = (
    b"Received: by mail.alice.example (Postfix, from userid 0)\r\n\tid A2A6D139E; Fri, 27 Nov 2026 10:00:00 +0000\r\n"
)


@pytest.fixture
async def site(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> Site:
    return make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
        settings='max_recipients = 5\nlmtp = "127.0.0.1:0"\nmilter = "127.0.0.1:0"\n',
        policies={
            "bob.example.toml": 'levels = ["aes"]\n',
            "never.example.toml": 'peer = "bob"\nlevels = ["pqc+aes", "pqc"]\notherwise = "refuse"\n',
        },
    )  # fmt: skip


def of(site: Site) -> list[dict[str, Any]]:
    assert not verify(site.config.audit_directory).problems
    return list(records(site.config.audit_directory, events=("mail",)))


@asynccontextmanager
async def begun(site: Site, listener: str = "outgoing_lmtp") -> AsyncIterator[tuple[Talk, StatusNumbers]]:
    """A transaction whose first recipient is held, and what was counted when all is over."""
    numbers = StatusNumbers({})
    async with app.running(with_status(site).config) as addresses:
        async with talking(addresses[listener]) as talk:
            assert [(await talk.say(line)).code for line in OPENING] == [250, 250, 250, 451]
            yield talk, numbers
        async with asyncio.timeout(20):
            while not (found := StatusNumbers.of(await asked(addresses["status"]))).sum("qumail_recipients_total"):
                await asyncio.sleep(0.02)
        numbers.samples.update(found.samples)


@pytest.mark.parametrize("end", ["RSET", "QUIT", "LHLO again.example", ""])
async def test_a_transaction_that_ends_without_content_leaves_a_record_of_those_who_were_held(
    site: Site, end: str
) -> None:
    async with begun(site) as (talk, numbers):
        if end:
            await talk.say(end)
    [record] = of(site)
    assert (record["outcome"], record["reason"], record["level"]) == ("held", "NoPolicy", "none")
    assert (record["queue_id"], record["listener"], record["direction"]) == (QUEUE_ID, "lmtp", "outgoing")
    assert (record["octets"], record["message_id"], len(record["recipients"])) == (0, "", 1)
    assert "no policy covers (the recipient): create" in record["cause"]
    assert "zoe" not in str(record)
    assert numbers.sum("qumail_recipients_total", outcome="held", listener="lmtp") == 1
    assert numbers.sum("qumail_rejections_total") == 0


async def test_the_same_cause_for_many_is_one_record_and_those_with_content_are_of_the_same_mail(site: Site) -> None:
    async with begun(site) as (talk, numbers):
        for recipient, code in (
            ("zac@held.example", 451), ("zac@held.example", 451), ("x@never.example", 550), ("ben@bob.example", 250),
        ):  # fmt: skip
            assert (await talk.say(f"RCPT TO:<{recipient}>")).code == code
        await talk.say("DATA")
        assert (await talk.say(mails.plain().decode() + ".")).code == 250
    found = {(each["outcome"], each["reason"]): each for each in of(site)}
    assert {what: len(each["recipients"]) for what, each in found.items()} == {
        ("delivered", ""): 1, ("held", "NoPolicy"): 2, ("refused", "PolicyRefuses"): 1,
    }  # fmt: skip
    assert len({each["mail"] for each in found.values()}) == 1
    assert {each["message_id"] for each in found.values()} == {mime.hash_of_id("<1@alice.example>")}
    assert numbers.sum("qumail_recipients_total") == 4


async def test_more_than_a_mail_may_have_are_told_to_come_with_another(site: Site) -> None:
    async with begun(site) as (talk, _):
        codes = [(await talk.say(f"RCPT TO:<z{number}@held.example>")).code for number in range(6)]
    assert codes == [451, 451, 451, 451, 452, 452]
    assert sum(len(each["recipients"]) for each in of(site)) == 5


async def test_by_milter_as_well(site: Site) -> None:
    def hand_over(address: TCPAddress) -> str:
        mta = MTA(address)
        mta.negotiate()
        answer = mta.mail([("From", " ann@alice.example")], "x\r\n", recipients=["<zoe@held.example>"]).text
        mta.close()
        return answer

    async with app.running(site.config) as addresses:
        assert (await asyncio.to_thread(hand_over, addresses["outgoing_milter"])).startswith("451")
    [record] = of(site)
    assert (record["outcome"], record["reason"], record["listener"]) == ("held", "NoPolicy", "milter")


@pytest.mark.parametrize("trusted", [True, False])
async def test_what_a_mail_server_names_in_its_received_field_alone_is_its_queue_id_if_it_is_trusted(
    site: Site, trusted: bool
) -> None:
    if not trusted:
        text = site.config_file.read_text()
        site.config_file.write_text(text.replace("max_recipients = 5", 'trusted = ["192.0.2.0/24"]'))
    async with app.running(site.config) as addresses:
        assert (await submit(addresses["outgoing"], PICKED_UP + mails.plain())).code == 250
    assert [each["queue_id"] for each in of(site)] == ["A2A6D139E" if trusted else ""]
