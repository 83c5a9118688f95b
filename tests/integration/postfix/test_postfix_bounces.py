"""Mail that outsiders forge in a peer's name: what it costs when Postfix bounces it, and that it need not come to that.
Standard: deploy/postfix as it stands; RFC 3461 (6.2, RET) for what a bounce quotes; keys are counted at the KME.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from relay.canary import telling
from relay.config import MAX_BOUNCE
from relay.kme import DevelopmentKMEs, LinkSettings
from relay.schemes.padding import padded_size
from tests.testlib import mails
from tests.testlib.house import House, house
from tests.testlib.postfix import requires_postfix
from tests.testlib.sites import make_site, serving
from tests.testlib.submit import SMTPReply, submit

pytestmark = [requires_postfix, pytest.mark.asyncio(loop_scope="module")]

OWN = {"alice.example.toml": 'levels = ["plaintext"]\n'}
PADS = {"bob.example.toml": 'levels = ["otp"]\n'}
PADS_AND_DEMAND = {"bob.example.toml": 'levels = ["otp"]\nrequire = "aes"\n'}
ALIASES = {"virtual_alias_maps": "inline:{ {both@alice.example=ann@alice.example, bea@alice.example} }"}
LARGE = "A line of a large mail that was never sealed\r\n" * 5000
NO_STOCK = "prefetch = false\n"


class Made:
    """An organisation, and the KMEs from which its relay takes keys."""

    def __init__(self, alice: House, kmes: DevelopmentKMEs) -> None:
        self.alice, self.kmes = alice, kmes

    def key_octets(self) -> int:
        """All that was taken from the KMEs so far."""
        return sum(len(issued.key.key) for issued in self.kmes.link.keys.values())

    async def forge(self, message: bytes, recipient: str) -> SMTPReply:
        """An outsider's mail in Ben's name."""
        return await submit(self.alice.postfix.smtp, message, sender="ben@bob.example", recipients=[recipient])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kmes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DevelopmentKMEs]:
    """Both KMEs."""
    link = LinkSettings(key_rate=1_000_000)
    state = tmp_path_factory.mktemp("kme")
    async with DevelopmentKMEs(state_dir=state, host="127.0.0.1", ports=(0, 0), link=link) as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def _no_notes() -> Iterator[None]:
    """The note that tells Bob's relay of these mails takes keys as well, and comes at any time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(telling, "LOOK_S", 3600.0)
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["lmtp", "smtp", "milter"])
async def behind(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, kmes: DevelopmentKMEs
) -> AsyncIterator[Made]:
    """Where Postfix takes mail and then asks the relay, or hears of the outcome only then."""
    directory = tmp_path_factory.mktemp("behind")
    async with house(request.param, directory, kmes, policies=OWN | PADS, kme_settings=NO_STOCK) as alice:
        alice.own.on_rcpt["gone@alice.example"] = "550 5.1.1 no such user"
        yield Made(alice, kmes)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def in_front(tmp_path_factory: pytest.TempPathFactory, kmes: DevelopmentKMEs) -> AsyncIterator[Made]:
    """Where the relay is asked before Postfix takes mail."""
    directory = tmp_path_factory.mktemp("before")
    async with house(
        "incoming-proxy", directory, kmes, policies=OWN | PADS_AND_DEMAND, settings=ALIASES, kme_settings=NO_STOCK
    ) as alice:  # fmt: skip
        yield Made(alice, kmes)


async def test_a_bounce_of_a_large_forged_mail_costs_no_more_than_its_header(behind: Made) -> None:
    before, at_bob = behind.key_octets(), len(behind.alice.bob.got)
    assert (await behind.forge(mails.plain(body=LARGE), "gone@alice.example")).code == 250
    await behind.alice.bob.messages(at_bob + 1)
    assert behind.alice.unsealed_at_bob == []
    assert 0 < behind.key_octets() - before < 8 * 1024


async def test_a_bounce_of_an_endless_forged_header_is_not_sent_and_costs_nothing(behind: Made) -> None:
    before, at_bob = behind.key_octets(), len(behind.alice.bob.got)
    endless = b"".join(b"X-Endless: %d %s\r\n" % (number, b"x" * 900) for number in range(100))
    assert (await behind.forge(endless + mails.plain(), "gone@alice.example")).code == 250
    assert await behind.alice.settled() == set()
    assert (behind.key_octets(), len(behind.alice.bob.got)) == (before, at_bob)


async def test_no_bounce_costs_more_than_max_bounce_says(behind: Made) -> None:
    before, at_bob = behind.key_octets(), len(behind.alice.bob.got)
    long = b"".join(b"X-Long: %d %s\r\n" % (number, b"x" * 900) for number in range(29))
    assert (await behind.forge(long + mails.plain(), "gone@alice.example")).code == 250
    await behind.alice.bob.messages(at_bob + 1)
    spent = behind.key_octets() - before
    assert (
        29 * 900 < spent <= 2 * padded_size(MAX_BOUNCE, "padme")
    )  # a key of the KME is a pad of half its octets or more


async def test_in_front_of_the_queue_a_forged_mail_is_refused_and_nobody_gets_a_bounce(in_front: Made) -> None:
    before = in_front.key_octets()
    reply = await in_front.forge(mails.plain(body=LARGE), "ann@alice.example")
    assert str(reply).startswith("550 5.7.1 ")
    assert await in_front.alice.settled() == set()
    assert (in_front.key_octets(), in_front.alice.bob.got, in_front.alice.own.got) == (before, [], [])


async def test_in_front_of_the_queue_ordinary_and_sealed_mail_arrives_by_aliases_too(
    in_front: Made, tmp_path: Path
) -> None:
    alice, recipients = in_front.alice, ["both@alice.example", "al@alice.example"]
    plain = mails.plain().replace(b"<1@", b"<ordinary@")
    assert (await submit(alice.postfix.smtp, plain, sender="eva@elsewhere.example", recipients=recipients)).code == 250
    site = make_site(
        tmp_path / "bob", "bob", state=in_front.kmes.state_dir, kme_url=in_front.kmes.urls[1], kme_settings=NO_STOCK,
        outgoing=alice.postfix.smtp,
    )  # fmt: skip
    async with serving(site) as bob:
        sealed = mails.plain().replace(b"<1@", b"<sealed@")
        reply = await submit(bob["outgoing"], sealed, sender="ben@bob.example", recipients=recipients)
        assert reply.code == 250
    await alice.settled()
    everybody = ["al@alice.example", "ann@alice.example", "bea@alice.example"]
    assert [alice.delivered(subject) for subject in ("ordinary", "sealed")] == [everybody, everybody]
    marks = [b"X-QuMail-Protection: aes; peer=bob" in got.message for got in alice.own.got]
    assert sorted(marks) == [False] * 3 + [True] * 3
