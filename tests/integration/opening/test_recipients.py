"""Who gets a sealed mail, and from whom: what the sealed envelope says, whatever is said on the way.
Standard: relay/FORMAT.md; what does not fit is kept and answered as success, so that answers tell nobody who is named.
"""

from __future__ import annotations

import pytest
from structlog.testing import LogCapture

from tests.integration.opening.conftest import ANN, BEA, BEN, EVE, OUTSIDER, Alice, Bob, alike, at_every_level
from tests.testlib import mails
from tests.testlib.relay_command import run
from tests.testlib.submit import submit, submit_lmtp


@at_every_level
async def test_a_captured_mail_that_is_sent_to_another_mailbox_is_kept_and_the_named_one_still_gets_it(
    alice: Alice, bob_on_sqlite: Bob, level: str
) -> None:
    bob, sealed = bob_on_sqlite, await alice.seal(BEN, level=level)
    async with bob.running() as relay:
        redirected = await submit(relay, sealed, sender=OUTSIDER, recipients=[EVE])
        assert bob.got == []
        [kept] = await bob.kept()
        assert (kept.reason, kept.envelope.addresses) == ("redirected", (EVE,))
        genuine = await submit(relay, sealed, recipients=[BEN])
    assert bob.got == [(ANN, (BEN,))]
    assert mails.unproven(bob.hop.got[0].message).endswith(
        f"X-QuMail-Protection: {level}; peer=alice; author=peer\r\n".encode() + mails.plain()
    )
    assert (redirected.code, alike([redirected, genuine])) == (250, True)


async def test_of_several_recipients_those_who_are_named_get_it_and_no_answer_tells_who(
    alice: Alice, bob: Bob, log: LogCapture
) -> None:
    sealed = await alice.seal(BEN, BEA)
    async with bob.running("incoming_lmtp") as relay:
        replies = await submit_lmtp(relay, sealed, sender=OUTSIDER, recipients=[EVE, BEN, "x@bob.example", BEA])
    assert [reply.code for reply in replies] == [250] * 4
    assert alike(replies)
    assert bob.got == [(ANN, (BEN, BEA))]
    [kept] = await bob.kept()
    assert (kept.reason, kept.envelope.addresses) == ("redirected", (EVE, "x@bob.example"))
    assert EVE not in str(log.entries)


async def test_a_recipient_is_the_same_however_the_domain_is_written(alice: Alice, bob_on_sqlite: Bob) -> None:
    sealed = await alice.seal("ben@BOB.example")
    async with bob_on_sqlite.running() as relay:
        assert (await submit(relay, sealed, recipients=["ben@Bob.Example"])).code == 250
    assert bob_on_sqlite.got == [(ANN, ("ben@Bob.Example",))]


@pytest.mark.parametrize(
    ("sealed_for", "arrives_for"),
    [('"ben"@bob.example', "ben@bob.example"), ("ben@bob.example", '"b\\en"@bob.example')],
)
async def test_a_recipient_is_the_same_with_needless_quotes(
    alice: Alice, bob_on_sqlite: Bob, sealed_for: str, arrives_for: str
) -> None:
    sealed = await alice.seal(sealed_for)
    async with bob_on_sqlite.running() as relay:
        assert (await submit(relay, sealed, recipients=[arrives_for])).code == 250
    assert [each for _, each in bob_on_sqlite.got] == [(arrives_for,)]


@pytest.mark.parametrize("sender", [ANN, ""])
async def test_the_sender_is_the_sealed_one_and_nobody_hears_that_the_mail_arrived(
    alice: Alice, bob_on_sqlite: Bob, sender: str
) -> None:
    """Who sends a captured mail could otherwise have its header sent to them, as a notice of success."""
    bob, dan = bob_on_sqlite, "dan@bob.example"
    sealed = await alice.seal(BEN, BEA, dan, sender=sender)
    asked = {BEN: "NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;x", BEA: "NOTIFY=success", dan: "NOTIFY=NEVER"}
    async with bob.running() as relay:
        reply = await submit(
            relay, sealed, sender=OUTSIDER, recipients=list(asked), options=["RET=FULL"], parameters=asked
        )
    assert reply.code == 250
    commands = [each for each in bob.hop.commands if each.startswith(("MAIL", "RCPT"))]
    assert commands[0].startswith(f"MAIL FROM:<{sender}>")
    assert "RET=HDRS" in commands[0]
    assert commands[1:] == [
        f"RCPT TO:<{BEN}> NOTIFY=FAILURE ORCPT=rfc822;x",
        f"RCPT TO:<{BEA}>",
        f"RCPT TO:<{dan}> NOTIFY=NEVER",
    ]


async def test_a_sealed_sender_beyond_us_ascii_goes_on_with_smtputf8(alice: Alice, bob_on_sqlite: Bob) -> None:
    """Whatever MAIL FROM said on the way."""
    sender = "gr\u00fc\u00dfe@alice.example"
    sealed = await alice.seal(sender=sender)
    async with bob_on_sqlite.running() as relay:
        assert (await submit(relay, sealed, sender=OUTSIDER)).code == 250
    assert bob_on_sqlite.got == [(sender, (BEN,))]
    [mail_from] = [each for each in bob_on_sqlite.hop.commands if each.startswith("MAIL")]
    assert " SMTPUTF8" in mail_from


@pytest.mark.parametrize(
    ("forwards", "sender", "delivered"),
    [
        ("[]", "list@lists.example", False),
        ('["lists.example"]', "list@Lists.example", True),
        ('["lists.example"]', "list@sub.lists.example", False),
        ('["*"]', "list@lists.example", True),
        ("[]", "", True),
        ("[]", "ann@bob.example", False),
    ],
)
async def test_a_peer_seals_for_senders_of_its_domains_or_of_those_that_it_forwards(
    alice: Alice, bob_on_sqlite: Bob, forwards: str, sender: str, delivered: bool
) -> None:
    bob = bob_on_sqlite
    bob.configure("[peers.alice]", f"[peers.alice]\nforwards = {forwards}")
    sealed = await alice.seal(sender=sender)
    async with bob.running() as relay:
        assert (await submit(relay, sealed, sender=ANN)).code == 250
    assert bob.got == ([(sender.lower(), (BEN,))] if delivered else [])
    assert await bob.reasons() == ([] if delivered else ["redirected"])


# --- aliases -------------------------------------------------------------------------------------------

ALIASES = (
    '[aliases]\n"info@bob.example" = ["Ben@BOB.example", "bea@bob.example"]\n"bea@bob.example" = ["eve@bob.example"]'
)


@pytest.mark.parametrize(
    ("arrives_for", "delivered"),
    [("info@bob.example", True), ("Ben@bob.example", True), (BEA, True), (BEN, False), (EVE, False)],
)
async def test_mail_for_an_alias_may_arrive_for_those_whom_the_table_says(
    alice: Alice, bob_on_sqlite: Bob, arrives_for: str, delivered: bool
) -> None:
    """Upper and lower case count before the @; an alias of an alias is not followed."""
    bob = bob_on_sqlite
    bob.add(ALIASES)
    sealed = await alice.seal("info@bob.example")
    async with bob.running() as relay:
        assert (await submit(relay, sealed, recipients=[arrives_for])).code == 250
    assert bob.got == ([(ANN, (arrives_for,))] if delivered else [])
    assert await bob.reasons() == ([] if delivered else ["redirected"])


async def test_each_of_an_alias_gets_the_mail_once(alice: Alice, bob_on_sqlite: Bob) -> None:
    bob = bob_on_sqlite
    bob.add(ALIASES)
    sealed = await alice.seal("info@bob.example")
    async with bob.running("incoming_lmtp") as relay:
        assert all(reply.code == 250 for reply in await submit_lmtp(relay, sealed, recipients=["Ben@bob.example", BEA]))
        bob.hop.instead["greeting"] = "421 4.3.2 not needed"
        for recipient in ("Ben@bob.example", BEA):
            [reply] = await submit_lmtp(relay, sealed, recipients=[recipient])
            while "being delivered already" in reply.text:
                [reply] = await submit_lmtp(relay, sealed, recipients=[recipient])
            assert reply.code == 250
    assert bob.got == [(ANN, ("Ben@bob.example", BEA))]


# --- what a peer may use -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "level", "delivered"),
    [
        ('["pqc"]', "pqc", True),
        ('["pqc"]', "pqc+aes", True),
        ('["pqc"]', "rsa", False),
        ('["pqc", "rsa"]', "aes", False),
        ('["aes"]', "pqc+aes", False),
        ('["aes"]', "otp", False),
        ('["otp"]', "otp", True),
    ],
)
async def test_a_peer_is_believed_at_the_levels_that_it_may_use(
    alice: Alice, bob_on_sqlite: Bob, accept: str, level: str, delivered: bool
) -> None:
    bob = bob_on_sqlite
    bob.configure("[peers.alice]", f"[peers.alice]\naccept = {accept}")
    sealed = await alice.seal(level=level)
    async with bob.running() as relay:
        assert (await submit(relay, sealed)).code == 250
    assert bob.got == ([(ANN, (BEN,))] if delivered else [])
    assert await bob.reasons() == ([] if delivered else ["not-accepted"])


@pytest.mark.parametrize(
    ("use", "level", "delivered"),
    [
        ("otp", "otp", True),
        ("otp", "aes", False),
        ("otp", "pqc+aes", False),
        ("aes", "aes", True),
        ("aes", "otp", False),
    ],
)
async def test_keys_of_a_group_open_what_the_group_is_for_and_no_other_is_asked_for(
    alice: Alice, bob_on_sqlite: Bob, use: str, level: str, delivered: bool
) -> None:
    bob = bob_on_sqlite
    bob.configure("[kmes.kme]", f'[kmes.kme]\nuse = "{use}"')
    sealed = await alice.seal(level=level)
    async with bob.running() as relay:
        assert (await submit(relay, sealed)).code == 250
        async with bob.store() as store:
            assert (await store.received.counts() != {}) is delivered, "what is not accepted fetches no key"
    assert bob.got == ([(ANN, (BEN,))] if delivered else [])
    assert await bob.reasons() == ([] if delivered else ["not-accepted"])


async def test_what_a_person_releases_goes_from_the_sealed_sender_without_a_notice_of_success_too(
    alice: Alice, bob_on_sqlite: Bob
) -> None:
    bob = bob_on_sqlite
    bob.configure("[peers.alice]", '[peers.alice]\naccept = ["pqc"]')
    sealed = await alice.seal(BEN)
    asked = dict.fromkeys((EVE, BEN), "NOTIFY=SUCCESS")
    async with bob.running() as relay:
        assert (await submit(relay, sealed, sender=OUTSIDER, recipients=list(asked), parameters=asked)).code == 250
    [kept] = await bob.kept()
    assert (kept.reason, kept.envelope.addresses) == ("not-accepted", (BEN, EVE))
    bob.configure('accept = ["pqc"]', 'accept = ["aes"]')
    _, err, _ = await run("quarantine", "release", kept.id, "--config", bob.site.config_file)
    assert bob.got == [(ANN, (BEN,))], err
    assert [each for each in bob.hop.commands if each.startswith("RCPT")] == [f"RCPT TO:<{BEN}>"]
    assert [each.envelope.addresses for each in await bob.kept()] == [(EVE,)], "she waits until somebody drops it"
    _, err, _ = await run("quarantine", "release", kept.id, "--config", bob.site.config_file)
    assert "its sealed envelope names other recipients; `quarantine drop` destroys it" in err
