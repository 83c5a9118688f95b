"""For each reason why a mail cannot be opened: it is answered 250, kept, listed, and comes out once the cause is gone.
Standard: what is released is octet for octet what was sealed; nothing was on the disk in clear meanwhile.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from structlog.testing import LogCapture

from relay.counting import metrics
from relay.errors import BadTag, ConfigError, KeyNotFound
from relay.kme import DevelopmentKMEs, LinkSettings
from relay.mail import Envelope, Mail, Recipient
from relay.process import assembly
from relay.store.secret import SiteSecret
from relay.store.store import open_store
from tests.integration.quarantine.conftest import Bob, Seal, changed, flipped, settings
from tests.testlib import mails
from tests.testlib.counted import counted
from tests.testlib.identities import Identities
from tests.testlib.ports import two_free_ports
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site
from tests.testlib.submit import submit

PQC = 'levels = ["pqc"]\n'


def with_footer(message: bytes) -> bytes:
    return message + b"-- \r\nan added footer\r\n"


def for_site_9(message: bytes) -> bytes:
    return changed(message, lambda der: der.replace(b"\x0c\x011", b"\x0c\x019"))


def by_site_7(message: bytes) -> bytes:
    return changed(message, lambda der: der.replace(b"\x0c\x012", b"\x0c\x017"))


def with_trailing_octet(message: bytes) -> bytes:
    return changed(message, lambda der: der + b"\0")


SPOILT = [
    (flipped, "tampered", "was changed on the way", "BadTag"),
    (with_trailing_octet, "unknown-format", "", "BadStructure"),
    (with_footer, "unknown-format", "not clean base64", "BadStructure"),
    (for_site_9, "wrong-site", "sealed for SAE '9'", "UnknownPeer"),
    (by_site_7, "wrong-site", "sealed by SAE '7', which is no peer of ours", "UnknownPeer"),
]
spoilt = pytest.mark.parametrize(
    ("spoil", "reason", "cause", "kind"), SPOILT, ids=[each[0].__name__ for each in SPOILT]
)


@pytest.mark.in_process
@spoilt
async def test_what_can_never_be_opened_is_kept_sealed_and_handed_on_only_unopened(
    bob: Bob, seal: Seal, sink: Sink, log: LogCapture, spoil: Callable[[bytes], bytes], reason: str, cause: str, kind: str
) -> None:  # fmt: skip
    message = spoil(await seal())
    async with bob.running() as relay:
        reply = await submit(relay, message)
    assert (reply.code, sink.got) == (250, [])
    [entry] = await bob.listed()
    assert (entry["reason"], entry["sender"], entry["recipients"]) == (reason, "ann@alice.example", ["ben@bob.example"])
    assert cause in entry["cause"]
    [event] = [each for each in log.entries if each["event"] == "put_in_quarantine"]
    assert (event["id"], event["reason"], event["log_level"]) == (entry["id"], reason, "warning")
    assert message.splitlines()[-2] not in bob.on_disk()
    assert await bob.raw_command("show", "--raw", entry["id"]) == (0, "", message)

    status, err, _ = await bob.command("release", entry["id"])
    assert (status, f"{entry['id']}: stays in quarantine: {kind}" in err) == (1, True)
    assert not sink.got
    status, _, out = await bob.command("release", "--unopened", entry["id"])
    assert (status, out) == (0, f"{entry['id']}: ben@bob.example: delivered\n")
    [got] = sink.got
    assert got.message.endswith(message)
    assert (got.sender, got.recipients) == ("ann@alice.example", ("ben@bob.example",))
    assert await bob.listed() == []
    [line] = bob.ledger()
    assert (line["event"], line["level"], line["reason"].split(":")[0]) == ("released", "unopened", reason)


@spoilt
async def test_by_setting_such_mail_is_refused_and_nothing_is_kept_unless_its_keys_were_looked_at(
    bob: Bob, seal: Seal, sink: Sink, spoil: Callable[[bytes], bytes], reason: str, cause: str, kind: str
) -> None:
    """From then on a refusal would show a forger how far the forgery came."""
    bob.configure(settings('action = "refuse"'))
    message = spoil(await seal())
    async with bob.running() as relay:
        assert str(await submit(relay, message)).startswith("250" if spoil is flipped else "554 5.7.5")
    assert [entry["reason"] for entry in await bob.listed()] == ["tampered"] * (spoil is flipped)
    assert sink.got == []


async def test_a_peer_that_is_configured_later_has_its_mail_released(bob: Bob, seal: Seal, sink: Sink) -> None:
    message = await seal()
    bob.configure(lambda text: text.replace('sae_id = "2"', 'sae_id = "5"'))
    async with bob.running() as relay:
        assert (await submit(relay, message)).code == 250
    [entry] = await bob.listed()
    assert entry["reason"] == "wrong-site"
    bob.configure(lambda text: text.replace('sae_id = "5"', 'sae_id = "2"'))
    status, err, _ = await bob.command("release", entry["id"])
    assert (status, err) == (0, "")
    assert (
        mails.untraced(sink.got[0].message) == b"X-QuMail-Protection: aes; peer=alice; author=peer\r\n" + mails.plain()
    )
    assert await bob.listed() == []
    [line] = bob.ledger()
    assert (line["event"], line["level"], line["peer"]) == ("released", "aes", "alice")


async def test_mail_of_a_signer_whose_document_is_imported_later_is_released(
    tmp_path: Path, kmes: DevelopmentKMEs, identities: Identities, seal: Seal, sink: Sink
) -> None:
    message = await seal(mails.eight_bit(), PQC)
    site = make_site(
        tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=sink.address,
        identities=identities,
    )  # fmt: skip
    bob, document = Bob(site, sink), site.directory / "peers" / "alice.json"
    document.rename(tmp_path / "alice.json")
    async with bob.running() as relay:
        assert (await submit(relay, message)).code == 250
    [entry] = await bob.listed()
    assert entry["reason"] == "unknown-signer"
    (tmp_path / "alice.json").rename(document)
    assert (await bob.command("release", "--all", "--reason", "unknown-signer"))[0] == 0
    assert (
        mails.untraced(sink.got[0].message)
        == b"X-QuMail-Protection: pqc; peer=alice; author=peer\r\n" + mails.eight_bit()
    )


async def test_a_peer_that_seals_in_the_name_of_a_foreign_domain_is_not_believed(
    tmp_path: Path, kmes: DevelopmentKMEs, identities: Identities, seal: Seal, sink: Sink
) -> None:
    site = make_site(
        tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=sink.address,
        identities=identities,
    )  # fmt: skip
    bob = Bob(site, sink)
    message = await seal(how=PQC, sender="ceo@stranger.example")
    async with bob.running() as relay:
        for sender in ("ceo@stranger.example", "ann@alice.example"):
            assert (await submit(relay, message, sender=sender)).code == 250
    [entry] = await bob.listed()
    assert (entry["reason"], entry["party"], sink.got) == ("redirected", "", [])
    assert "peer 'alice' sealed it for a sender of another domain" in entry["cause"]
    bob.configure(lambda text: text.replace("[peers.alice]", '[peers.alice]\nforwards = ["stranger.example"]'))
    assert (await bob.command("release", "--all"))[0] == 0
    assert [(got.sender, got.recipients) for got in sink.got] == [("ceo@stranger.example", ("ben@bob.example",))]


class KMEClock:
    """Seconds, as the test says."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def kme_clock() -> KMEClock:
    return KMEClock()


@pytest.fixture
async def kmes(request: pytest.FixtureRequest, tmp_path: Path, kme_clock: KMEClock) -> AsyncIterator[DevelopmentKMEs]:
    """As everywhere, but keys come to the other side `lag` seconds of the test's own clock later."""
    link = LinkSettings(key_rate=1_000_000, lag=getattr(request, "param", 0.0))
    async with DevelopmentKMEs(
        state_dir=tmp_path / "kme", host="127.0.0.1", ports=two_free_ports(), link=link, clock=kme_clock
    ) as servers:
        yield servers


late = pytest.mark.parametrize("kmes", [300.0], indirect=True)


@late
async def test_a_late_key_holds_the_mail_until_it_comes(bob: Bob, seal: Seal, sink: Sink, kme_clock: KMEClock) -> None:
    message = await seal()
    async with bob.running() as relay:
        assert str(await submit(relay, message)).startswith("451 4.7.5")
        await bob.let_time_pass(4 * 3600 - 60)
        assert str(await submit(relay, message)).startswith("451 4.7.5")
        kme_clock.now += 300
        assert (await submit(relay, message)).code == 250
    assert sink.got[0].message.endswith(b"\r\n" + mails.plain())
    assert await bob.listed() == []


@late
async def test_a_key_that_does_not_come_in_time_puts_the_mail_aside_and_it_is_released_when_it_comes_after_all(
    bob: Bob, seal: Seal, sink: Sink, kme_clock: KMEClock
) -> None:
    message = await seal(recipients=["ben@bob.example", "carl@bob.example"])
    async with bob.running() as relay:
        assert str(await submit(relay, message)).startswith("451 4.7.5")
        await bob.let_time_pass(4 * 3600)
        assert (await submit(relay, message)).code == 250
        again = await submit(relay, message, recipients=["carl@bob.example"])
        assert again.code == 250, "what was decided for a message is not waited for again"
    [entry] = await bob.listed()
    assert (entry["reason"], entry["recipients"]) == ("expired", ["ben@bob.example", "carl@bob.example"])
    status, err, _ = await bob.command("release", "--all")
    assert (status, "KeyNotFound" in err, sink.got) == (1, True, [])
    kme_clock.now += 300
    assert (await bob.command("release", "--all"))[0] == 0
    assert sink.got[0].recipients == ("ben@bob.example", "carl@bob.example")
    assert (
        mails.untraced(sink.got[0].message) == b"X-QuMail-Protection: aes; peer=alice; author=peer\r\n" + mails.plain()
    )
    assert await bob.listed() == []


async def started_again(kmes: DevelopmentKMEs) -> None:
    """At the same ports, which a connection of another test may have for a moment."""
    async with asyncio.timeout(30):
        while True:
            with suppress(ConfigError):
                return await kmes.start()
            await asyncio.sleep(0.1)


async def test_a_kme_that_is_down_holds_the_mail_however_long_that_takes(
    tmp_path: Path, kmes: DevelopmentKMEs, bob: Bob, seal: Seal, sink: Sink
) -> None:
    bob.configure(settings("hold_for = 0"))
    message = await seal()
    await kmes.stop()
    async with bob.running() as relay:
        assert str(await submit(relay, message)).startswith("451 4.7.5")
        assert await bob.listed() == []
        await started_again(kmes)
    found_again = re.sub(r"(?m)^url = .*$", f'url = "{kmes.urls[1]}"', bob.site.config_file.read_text())
    bob.site.config_file.write_text(found_again)
    async with bob.running() as relay:
        assert (await submit(relay, message)).code == 250
    assert sink.got[0].message.endswith(mails.plain())


async def test_a_copy_whose_key_was_destroyed_is_kept_and_says_so(bob: Bob, seal: Seal, sink: Sink) -> None:
    message = await seal(recipients=["ben@bob.example", "carl@bob.example"])
    async with bob.running() as relay:
        assert (await submit(relay, message)).code == 250
        config = bob.site.config
        async with await open_store(config.store.database, SiteSecret.load(config.store.secret)) as store:
            assert await store.received.destroy_expired(4e9) == 1
        assert (await submit(relay, message, recipients=["carl@bob.example"])).code == 250
    assert len(sink.got) == 1
    [entry] = await bob.listed()
    assert (entry["reason"], entry["recipients"]) == ("destroyed", ["carl@bob.example"])
    status, err, _ = await bob.command("release", entry["id"])
    assert (status, "KeyDestroyed" in err) == (1, True)


async def test_what_people_sealed_for_each_other_passes_unopened(bob: Bob, seal: Seal, sink: Sink) -> None:
    others = changed(await seal(how=PQC), lambda der: der.replace(b"\x80", b"\x81", 1))
    garbage = changed(await seal(), lambda _: b"\x30\x03\x02\x01\x00")
    async with bob.running() as relay:
        for message in (others, garbage):
            assert (await submit(relay, message, sender="x@stranger.example")).code == 250
            assert sink.got[-1].message.endswith(message)
    assert await bob.listed() == []


async def test_what_comes_and_what_is_there_is_counted(bob: Bob, seal: Seal) -> None:
    message = flipped(await seal())
    mail = Mail(Envelope("ann@alice.example", (Recipient("ben@bob.example"),)), message)
    async with assembly.parts(bob.site.config, prefetch=False) as parts:
        for _ in range(2):
            await parts.triage.cannot_open(mail, BadTag("changed"))
        with pytest.raises(KeyNotFound):
            await parts.triage.cannot_open(mail.changed(message=await seal()), KeyNotFound("late"))
        await parts.triage.refresh()
        board = parts.triage.board
        assert counted(board, metrics.QUARANTINE_PUT, "tampered", "no") == 1
        assert counted(board, metrics.QUARANTINE_PUT, "tampered", "yes") == 1
        assert counted(board, metrics.QUARANTINE_MESSAGES, "tampered", "alice") == 1
        assert counted(board, metrics.QUARANTINE_MESSAGES, "tampered", "") == 0
        assert counted(board, metrics.QUARANTINE_MESSAGES, "expired", "alice") == 0
        assert counted(board, metrics.QUARANTINE_LAG) == 1
        assert (counted(board, metrics.QUARANTINE_BYTES) or 0) > len(message)
        assert counted(board, metrics.QUARANTINE_LIMIT) == 2**30


async def test_what_is_kept_survives_a_restart(bob: Bob, seal: Seal, sink: Sink) -> None:
    message = flipped(await seal())
    for _ in range(2):
        async with bob.running() as relay:
            assert (await submit(relay, message)).code == 250
    [entry] = await bob.listed()
    assert entry["arrivals"] == 2
