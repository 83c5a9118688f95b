"""`unprotected = "quarantine"`: mail that arrived with less than it must is put aside and can be let through with a mark.
Standard: policies/README.md; such mail is content, so it lies on the disk only under the site secret.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.policy.content import MessageFacts
from relay.policy.load import load_policies
from tests.integration.quarantine.conftest import Bob, Seal, settings
from tests.testlib import mails
from tests.testlib.policy_files import AES, PEERS, write
from tests.testlib.sink import Sink
from tests.testlib.submit import submit


def require(level: str) -> dict[str, str]:
    return {"alice.example.toml": AES + f'require = "{level}"\nunprotected = "quarantine"\n'}


async def test_mail_that_came_unsealed_is_put_aside_and_released_with_its_mark(bob: Bob, sink: Sink) -> None:
    bob.site.write_policies(require("aes"))
    async with bob.running() as relay:
        assert (await submit(relay, mails.plain())).code == 250
    assert not sink.got
    assert b"The figures are 42" not in bob.on_disk()
    [entry] = await bob.listed()
    assert (entry["reason"], entry["protection"]) == ("unprotected", "none")
    assert "must arrive with aes or stronger, and it arrived unsealed" in entry["cause"]
    assert (await bob.command("release", entry["id"]))[0] == 0
    [got] = sink.got
    assert got.message.startswith(b"Received: from ")
    assert mails.unproven(got.message).endswith(b"X-QuMail-Protection: none; required=aes\r\n" + mails.plain())
    [line] = bob.ledger()
    assert (line["event"], line["level"]) == ("released", "plaintext")


async def test_mail_that_was_sealed_too_weakly_is_put_aside_and_needs_no_key_when_it_is_released(
    bob: Bob, seal: Seal, sink: Sink
) -> None:
    bob.site.write_policies(require("otp"))
    message = await seal(recipients=["ben@bob.example", "carl@bob.example"])
    async with bob.running() as relay:
        assert (await submit(relay, message)).code == 250
        assert (await submit(relay, message, recipients=["carl@bob.example"])).code == 250
    assert not sink.got
    assert b"The figures are 42" not in bob.on_disk()
    [entry] = await bob.listed()
    assert (entry["reason"], entry["protection"], len(entry["recipients"])) == ("unprotected", "aes", 2)
    assert (await bob.command("release", "--all"))[0] == 0
    assert (
        mails.untraced(sink.got[0].message)
        == b"X-QuMail-Protection: aes; peer=alice; author=peer; required=otp\r\n" + mails.plain()
    )


async def test_a_copy_for_somebody_who_is_not_named_does_not_get_into_what_was_opened_for_others(
    bob: Bob, seal: Seal, sink: Sink
) -> None:
    """What is kept of a mail that was too weak can be read: released to everybody who asked, it would be redirected."""
    bob.site.write_policies(require("otp"))
    message = await seal()
    async with bob.running() as relay:
        for recipient in ("carl@bob.example", "ben@bob.example", "dora@bob.example"):
            assert (await submit(relay, message, sender="eve@stranger.example", recipients=[recipient])).code == 250
    entries = {entry["reason"]: entry["recipients"] for entry in await bob.listed()}
    assert entries == {
        "redirected": ["carl@bob.example", "dora@bob.example"],
        "unprotected": ["ben@bob.example"],
    }
    assert (await bob.command("release", "--all"))[0] == 1
    assert [(got.sender, got.recipients) for got in sink.got] == [("ann@alice.example", ("ben@bob.example",))]


async def test_where_nothing_is_kept_it_is_refused(bob: Bob, sink: Sink) -> None:
    bob.configure(settings('action = "refuse"'))
    bob.site.write_policies(require("aes"))
    async with bob.running() as relay:
        assert str(await submit(relay, mails.plain())).startswith("550 5.7.1")
    assert (await bob.listed(), sink.got) == ([], [])


@pytest.mark.parametrize(
    ("one", "other", "counts"),
    [("refuse", "quarantine", "refuse"), ("quarantine", "mark", "quarantine"), ("mark", "refuse", "refuse")],
)
def test_of_two_actions_for_one_mail_the_severer_counts(tmp_path: Path, one: str, other: str, counts: str) -> None:
    text = AES + 'require = "aes"\nunprotected = "{}"\n'
    files = {"bob.example/one.toml": text.format(one), "bob.example/other.toml": text.format(other)}
    policies = load_policies(write(tmp_path, files), PEERS)
    missed = policies.require("one@bob.example", MessageFacts(b"From: other@bob.example\r\n\r\n")).missed("", "")
    assert missed is not None
    assert missed.otherwise == counts
