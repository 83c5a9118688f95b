"""What must arrive sealed: mail from a peer that does not is refused or marked, whoever its header says it is from.
Standard: policies/README.md; the mark is a field that nobody else can write.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import LogCapture

from relay import app
from relay.kme import DevelopmentKMEs
from relay.policy import Content, Requirement, load_policies
from tests.test_policy import AES, PEERS, write
from tests.test_refusals import log as log  # a fixture
from tests.testlib import mails
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site
from tests.testlib.submit import Reply, submit

REFUSE = AES + 'require = "aes"\n'
MARK = REFUSE + 'unprotected = "mark"\n'


def required(directory: Path, files: dict[str, str], sender: str, message: bytes = b"\r\n") -> Requirement | None:
    return load_policies(write(directory, files), PEERS).require(sender, Content(message))


@pytest.mark.parametrize(
    ("sender", "header", "source"),
    [
        ("x@bob.example", "", "bob.example.toml"),
        ("X+tag@BOB.example", "", "bob.example.toml"),
        ("vip@bob.example", "", "bob.example/vip.toml"),
        ("x@stranger.example", "", None),
        ("", "", None),
        ("x@stranger.example", "From: Boss <vip@bob.example>\r\n", "bob.example/vip.toml"),
        ("", "From: x@bob.example\r\n", "bob.example.toml"),
        ("x@bob.example", "From: vip@bob.example\r\n", "bob.example/vip.toml"),
        ("vip@bob.example", "From: x@bob.example\r\n", "bob.example/vip.toml"),
        ("x@stranger.example", 'From: "x@bob.example" <x@stranger.example>\r\n', None),
        ("x@stranger.example", "From: x@stranger.example\r\nFrom: x@bob.example\r\n", "bob.example.toml"),
        ("x@stranger.example", "From: x@stranger.example, x@bob.example\r\n", "bob.example.toml"),
        ("free@bob.example", "", None),
        ("not an address", "", None),
        ("a@b@bob.example", "", "bob.example.toml"),
        ("x@bob.example.", "", "bob.example.toml"),
        ("", "From: x@bob.example.\r\n", "bob.example.toml"),
        ("", "From: <x@\uff22ob.example>\r\n", "bob.example.toml"),
        ("", 'From: <"quoted"@bob.example>\r\n', "bob.example.toml"),
        ("", 'From: "unfinished <x@bob.example>\r\n', "bob.example.toml"),
    ],
)
def test_sender_and_authors_decide_and_the_strictest_counts(
    tmp_path: Path, sender: str, header: str, source: str | None
) -> None:
    files = {"bob.example.toml": MARK, "bob.example/vip.toml": AES + 'require = "otp"\n', "bob.example/free.toml": AES}
    found = required(tmp_path, files, sender, header.encode() + b"\r\n")
    assert (found.source if found else None) == (f"{tmp_path}/{source}" if source else None)


@pytest.mark.parametrize(
    ("level", "protection", "peer", "enough"),
    [
        ("aes", "aes", "bob", True),
        ("aes", "otp", "bob", True),
        ("aes", "pqc", "bob", False),
        ("aes", "pqc+aes", "bob", True),
        ("pqc", "rsa+aes", "bob", True),
        ("rsa", "", "", False),
        ("rsa", "rsa", "bob", True),
        ("rsa", "rsa", "carol", False),
    ],
)
def test_the_level_must_be_as_strong_and_the_peer_the_right_one(
    tmp_path: Path, level: str, protection: str, peer: str, enough: bool
) -> None:
    found = required(tmp_path, {"bob.example.toml": AES + f'require = "{level}"\n'}, "x@bob.example")
    assert found is not None
    assert (found.missed(protection, peer) == "") is enough


async def through_bob(
    directory: Path, kmes: DevelopmentKMEs, sink: Sink, policy: str, message: bytes, sender: str = "ann@alice.example"
) -> Reply:
    bob = make_site(
        directory / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=sink.address,
        policies={"default.toml": AES, "alice.example.toml": policy},
    )  # fmt: skip
    async with app.running(bob.config) as addresses:
        return await submit(addresses["incoming"], message, sender=sender)


@pytest.mark.parametrize("sender", ["ann@alice.example", "evil@stranger.example", ""])
async def test_unsealed_mail_in_the_name_of_a_peer_is_refused(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, log: LogCapture, sender: str
) -> None:
    reply = await through_bob(tmp_path, kmes, sink, REFUSE, mails.plain(), sender)
    assert str(reply).startswith("550 5.7.1")
    assert not sink.got
    [entry] = [each for each in log.entries if each["event"] == "arrived_unprotected"]
    assert "must arrive with aes at least, and it arrived unsealed" in entry["cause"]


async def test_unsealed_mail_can_be_marked_and_nobody_else_can_write_the_mark(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    forged = b"X-QuMail-Protection: aes; peer=alice\r\n" + mails.plain()
    assert (await through_bob(tmp_path, kmes, sink, MARK, forged)).code == 250
    assert b"X-QuMail-Protection: none; required=aes\r\n" + mails.plain() in sink.got[0].message
    assert b"peer=alice" not in sink.got[0].message


async def test_mail_of_strangers_passes(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> None:
    message = mails.plain().replace(b"alice.example", b"stranger.example")
    assert (await through_bob(tmp_path, kmes, sink, REFUSE, message, "x@stranger.example")).code == 250
    assert sink.got[0].message.endswith(message)


@pytest.mark.parametrize(("require", "delivered"), [("aes", 1), ("otp", 0)])
async def test_sealed_mail_is_measured_by_how_it_was_sealed_and_answered_alike(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, wire: Sink, log: LogCapture, require: str, delivered: int
) -> None:
    """What is too weak is put aside even where policy refuses: a refusal would tell whom the sealed envelope names."""
    alice = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address
    )  # fmt: skip
    async with app.running(alice.config) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250
    policy = AES + f'require = "{require}"\n'
    assert (await through_bob(tmp_path, kmes, sink, policy, wire.got[0].message)).code == 250
    assert len(sink.got) == delivered
    kept = [each["reason"] for each in log.entries if each["event"] == "put_in_quarantine"]
    assert kept == ["unprotected"] * (1 - delivered)


async def test_sealed_mail_that_is_too_weak_can_be_marked(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, wire: Sink
) -> None:
    alice = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address)
    async with app.running(alice.config) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250
    policy = AES + 'require = "otp"\nunprotected = "mark"\n'
    assert (await through_bob(tmp_path, kmes, sink, policy, wire.got[0].message)).code == 250
    assert (
        mails.untraced(sink.got[0].message) == b"X-QuMail-Protection: aes; peer=alice; required=otp\r\n" + mails.plain()
    )
