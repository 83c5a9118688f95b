"""What must arrive sealed: mail that does not is refused or marked, for every sender in envelope and header.
Standard: policies/README.md; the mark is a field that nobody else can write.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import LogCapture

from relay.formats.mailbox import fold_domain
from relay.kme import DevelopmentKMEs
from relay.policy.content import MessageFacts
from relay.policy.load import PolicyFolder, load_policies
from relay.policy.require import Requirements, author
from tests.testlib import mails
from tests.testlib.policy_files import AES, PEERS, write
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site, serving
from tests.testlib.speed import seconds
from tests.testlib.submit import SMTPReply, submit

REFUSE = AES + 'require = "aes"\n'
MARK = REFUSE + 'unprotected = "mark"\n'


BOTH = AES + 'require = "pqc+aes"\n'
UNREADABLE = "Boss <<x@stranger.example>"


def required(directory: Path, files: dict[str, str], sender: str, message: bytes = b"\r\n") -> Requirements:
    return load_policies(write(directory, files), PEERS).require(sender, MessageFacts(message))


VIP = ["bob.example/vip.toml", "bob.example.toml"]
"""What the domain's file requires holds for its persons, too."""


@pytest.mark.parametrize(
    ("sender", "header", "sources"),
    [
        ("x@bob.example", "", ["bob.example.toml"]),
        ("X+tag@BOB.example", "", ["bob.example.toml"]),
        ("vip@bob.example", "", VIP),
        ('"vip"@bob.example', "", VIP),
        ("x@stranger.example", "", []),
        ("x@[192.0.2.1]", "", []),
        ("", "", []),
        ("x@stranger.example", "From: Boss <vip@bob.example>\r\n", VIP),
        ("", "From: x@bob.example\r\n", ["bob.example.toml"]),
        ("", "From: x@stranger.example\r\nSender: x@bob.example\r\n", ["bob.example.toml"]),
        ("x@bob.example", "From: vip@bob.example\r\n", ["bob.example.toml", "bob.example/vip.toml"]),
        ("vip@bob.example", "From: x@bob.example\r\n", VIP),
        ("x@stranger.example", 'From: "x@bob.example" <x@stranger.example>\r\n', []),
        ("x@stranger.example", "From: x@stranger.example\r\nFrom: x@bob.example\r\n", ["bob.example.toml"]),
        ("x@stranger.example", "From: x@stranger.example, x@bob.example\r\n", ["bob.example.toml"]),
        ("free@bob.example", "", []),
        ("", 'From: <"quoted"@bob.example>\r\n', ["bob.example.toml"]),
        ("", 'From: "Boss \\\\" <vip@bob.example>, "b" <x@evil.example>\r\n', VIP),
        ("", 'From: (a (b) ") <vip@bob.example>, "x" <x@evil.example>\r\n', VIP),
        ("", "From: <vip@ bob.example>\r\n", VIP),
        ("", "From: vip@(c)bob.example\r\n", VIP),
        ("", "From: (\\\\) vip@bob.example (x)\r\n", VIP),
    ],
)
def test_sender_and_everybody_named_as_author_count(
    tmp_path: Path, sender: str, header: str, sources: list[str]
) -> None:
    files = {
        "bob.example.toml": MARK,
        "bob.example/vip.toml": AES + 'require = "otp"\n',
        "bob.example/free.toml": AES + 'require = "none"\n',
    }
    found = required(tmp_path, files, sender, header.encode() + b"\r\n")
    seen = dict.fromkeys(each.because.partition(": ")[0] for each in found.each)
    assert list(seen) == [f"{tmp_path}/{source}" for source in sources]


def test_what_a_domain_requires_holds_for_all_below_it_until_a_file_says_none(tmp_path: Path) -> None:
    files = {
        "default.toml": AES + 'require = "rsa"\n',
        "bob.example.toml": BOTH + 'subdomains = true\nunprotected = "mark"\n',
        "lab.bob.example.toml": AES + 'peer = "carol"\n',
        "lab.bob.example/vip.toml": AES + 'require = "otp"\nunprotected = "quarantine"\n',
        "open.bob.example.toml": AES + 'subdomains = true\nrequire = "none"\n',
        "shut.open.bob.example.toml": AES + 'require = "sealed"\n',
    }

    def of(sender: str) -> list[tuple[Any, ...]]:
        return [tuple(each.demand) for each in required(tmp_path, files, sender).each]

    both = "pqc+aes"
    assert of("x@bob.example") == [(both, "mark", "bob")]
    assert of("x@lab.bob.example") == [(both, "mark", "carol")]
    assert of("vip@lab.bob.example") == [("otp", "quarantine", None), (both, "mark", None)]
    assert of("x@open.bob.example") == of("x@deep.open.bob.example") == []
    assert of("x@shut.open.bob.example") == [("sealed", "refuse", None)]
    assert of("x@elsewhere.example") == [("rsa", "refuse", None)]


@pytest.mark.parametrize(
    ("sender", "header"),
    [
        ("not an address", ""),
        ("x", ""),
        ("a@b@bob.example", ""),
        ("x@bob.example.", ""),
        ("x@b\uff4fb.example", ""),
        ("\udcff@bob.example", ""),
        ("", "From: x@bob.example.\r\n"),
        ("", "From: <x@\uff22ob.example>\r\n"),
        ("", 'From: "unfinished <x@bob.example>\r\n'),
        ("", f"From: {UNREADABLE}\r\n"),
        ("x@stranger.example", "From: x@stranger.example\r\nSender: somebody\r\n"),
        ("x@stranger.example", "From:\r\n"),
        ("x@stranger.example", "From: " + "a@b.example, " * 5000 + "x@bob.example\r\n"),
    ],
)
def test_mail_from_whom_is_in_doubt_counts_as_from_everybody(tmp_path: Path, sender: str, header: str) -> None:
    files = {
        "bob.example.toml": MARK,
        "bob.example/vip.toml": AES + 'require = "otp"\n',
        "carol.example.toml": BOTH + 'unprotected = "quarantine"\n',
    }
    found = required(tmp_path, files, sender, header.encode() + b"\r\n")
    assert {each.demand for each in found.each} == {
        ("aes", "mark", "bob"), ("otp", "refuse", "bob"), ("pqc+aes", "quarantine", "carol"),
    }  # fmt: skip
    missed = found.missed("otp", "bob")
    assert missed is not None
    assert (missed.mark, missed.otherwise) == ("; required=pqc+aes", "quarantine")


def test_where_nothing_is_required_doubt_does_not_matter(tmp_path: Path) -> None:
    found = required(tmp_path, {"default.toml": AES}, "not an address", f"From: {UNREADABLE}\r\n\r\n".encode())
    assert found.missed("", "") is None


def test_an_edit_is_followed_by_what_doubt_means(tmp_path: Path) -> None:
    write(tmp_path, {"bob.example.toml": REFUSE, "carol.example.toml": REFUSE})
    folder = PolicyFolder(tmp_path, PEERS)
    assert {each.peer for each in folder.read().demands} == {"bob", "carol"}
    (tmp_path / "bob.example.toml").write_text(AES)
    (tmp_path / "carol.example.toml").write_text(BOTH)
    assert set(folder.read_again(["bob.example.toml", "carol.example.toml"]).demands) == {
        ("pqc+aes", "refuse", "carol")
    }


@pytest.mark.parametrize(
    ("levels", "protection", "peer", "enough"),
    [
        ('"aes"', "aes", "bob", True),
        ('"aes"', "otp", "bob", True),
        ('"aes"', "pqc+aes", "bob", False),
        ('"aes"', "hqc-256", "bob", False),
        ('"pqc+aes"', "pqc+hqc-256+aes", "bob", True),
        ('"pqc+aes"', "aes", "bob", True),
        ('"pqc+aes"', "pqc", "bob", False),
        ('"pqc+aes"', "rsa+aes", "bob", False),
        ('"otp"', "otp", "bob", True),
        ('"otp"', "aes", "bob", False),
        ("3", "pqc", "bob", True),
        ('"pqc"', "otp", "bob", True),
        ('"pqc"', "rsa+aes", "bob", False),
        ('"rsa"', "rsa", "bob", True),
        ('"rsa"', "", "", False),
        ('"rsa"', "rsa", "carol", False),
        ('"sealed"', "rsa", "bob", True),
        ('"sealed"', "", "", False),
        ('"sealed"', "aes", "carol", False),
    ],
)
def test_mail_must_arrive_with_that_level_or_a_stronger_one_from_the_right_peer(
    tmp_path: Path, levels: str, protection: str, peer: str, enough: bool
) -> None:
    found = required(tmp_path, {"bob.example.toml": AES + f"require = {levels}\n"}, "x@bob.example")
    assert len(found.each) == 1
    assert (found.missed(protection, peer) is None) is enough


@pytest.mark.promise("A peer speaks for its own domains only")
def test_no_peer_may_seal_for_the_author_of_another(tmp_path: Path) -> None:
    files = {"bob.example.toml": REFUSE, "carol.example.toml": REFUSE}
    message = b"From: minister@bob.example\r\n\r\n"
    assert required(tmp_path, files, "x@bob.example", message).missed("aes", "bob") is None
    for sender in ("x@carol.example", "x@stranger.example", ""):
        missed = required(tmp_path, files, sender, message).missed("aes", "carol")
        assert missed is not None
        assert "mail from minister@bob.example must be sealed by peer 'bob', not by 'carol'" in missed.cause
    both = b"From: minister@bob.example, x@carol.example\r\n\r\n"
    assert required(tmp_path, files, "", both).missed("aes", "bob") is not None


@pytest.mark.parametrize(
    ("text", "peer", "enough"),
    [
        (REFUSE, "bob", False),
        (REFUSE, "carol", False),
        ('peer = "bob"\n' + REFUSE, "bob", True),
        ('peer = "bob"\n' + REFUSE, "carol", False),
    ],
)
@pytest.mark.parametrize("name", ["stranger.example.toml", "default.toml"])
def test_for_a_domain_of_no_peer_only_the_one_that_its_file_names_may_seal(
    tmp_path: Path, name: str, text: str, peer: str, enough: bool
) -> None:
    missed = required(tmp_path, {name: text}, "x@stranger.example").missed("aes", peer)
    assert (missed is None) is enough
    assert missed is None or "stranger.example" in missed.cause


def test_of_all_that_is_missed_the_severest_action_counts_and_all_stands_in_mark_and_cause(tmp_path: Path) -> None:
    files = {"bob.example.toml": MARK, "carol.example.toml": BOTH}
    message = b"From: x@carol.example, y@bob.example\r\n\r\n"
    missed = required(tmp_path, files, "x@bob.example", message).missed("", "")
    assert missed is not None
    assert (missed.otherwise, missed.mark) == ("refuse", "; required=aes")
    assert "carol.example.toml: mail from x@carol.example must arrive with pqc+aes or stronger" in missed.cause
    assert (
        "bob.example.toml: mail from x@bob.example must arrive with aes or stronger, and it arrived unsealed"
        in missed.cause
    )
    only = required(tmp_path, files, "x@bob.example", message).missed("pqc+aes", "carol")
    assert only is not None
    assert (only.otherwise, only.mark) == ("mark", "; required=aes")


def test_a_cause_is_one_line_of_bounded_length(tmp_path: Path) -> None:
    names = ", ".join(f"a{number}@bob.example" for number in range(90))
    missed = required(tmp_path, {"bob.example.toml": REFUSE}, "", f"From: {names}\r\n\r\n".encode()).missed("", "")
    assert missed is not None
    assert missed.cause.endswith("; and 85 more")
    assert missed.cause.isprintable()


@pytest.mark.parametrize(
    ("header", "whose"),
    [
        ("From: x@bob.example\r\n", "peer"),
        ("From: x@BOB.example, Y <y@bobby.example>\r\n", "peer"),
        ("From: x@xn--bcher-kva.example\r\n", "peer"),
        ("Sender: x@evil.example\r\nFrom: x@bob.example\r\n", "peer"),
        ("", "other"),
        ("From:\r\n", "other"),
        ("From: x@evil.example\r\n", "other"),
        ("From: x@bob.example, x@evil.example\r\n", "other"),
        ("From: x@lab.bob.example\r\n", "other"),
        ("From: x@bob.example\r\nFrom: x@bob.example\r\n", "other"),
        ("From: Boss, Ann <x@bob.example>\r\n", "other"),
        ("From: nobody:;\r\n", "other"),
        ('From: "x@bob.example" <x@evil.example>\r\n', "other"),
    ],
)
def test_the_author_is_the_peers_only_where_that_is_beyond_doubt(header: str, whose: str) -> None:
    content = MessageFacts(header.encode() + b"\r\n")
    assert author(content, ["Bob.example", "bobby.example", "b\u00fccher.example"]) == whose
    assert author(content, []) == "other"


def test_no_sender_takes_long(tmp_path: Path) -> None:
    marks = "\u0315\u0300" * 250_000
    policies = load_policies(write(tmp_path, {"bob.example.toml": REFUSE}), PEERS)

    def ask() -> None:
        for sender in (f"a{marks}@bob.example", f"a@{marks}.example", f'"{marks}"@bob.example'):
            assert policies.require(sender).missed("", "") is not None
        with pytest.raises(ValueError, match="longer than"):
            fold_domain(f"{marks}.example")
        with pytest.raises(ValueError, match="longer than"):
            fold_domain("\u0315" * 300 + ".example")

    assert seconds(ask) < 0.2


async def through_bob(
    directory: Path, kmes: DevelopmentKMEs, sink: Sink, policy: str, message: bytes, sender: str = "ann@alice.example"
) -> SMTPReply:
    bob = make_site(
        directory / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=sink.address,
        policies={"default.toml": AES, "alice.example.toml": policy},
    )  # fmt: skip
    async with serving(bob) as addresses:
        return await submit(addresses["incoming"], message, sender=sender)


@pytest.mark.in_process
@pytest.mark.parametrize("sender", ["ann@alice.example", "evil@stranger.example", ""])
async def test_unsealed_mail_in_the_name_of_a_peer_is_refused(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, log: LogCapture, sender: str
) -> None:
    reply = await through_bob(tmp_path, kmes, sink, REFUSE, mails.plain(), sender)
    assert str(reply).startswith("550 5.7.1")
    assert not sink.got
    [entry] = [each for each in log.entries if each["event"] == "arrived_unprotected"]
    assert "must arrive with aes or stronger, and it arrived unsealed" in entry["cause"]


async def test_unsealed_mail_can_be_marked_and_nobody_else_can_write_the_mark(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    forged = b"X-QuMail-Protection: aes; peer=alice; author=peer\r\n" + mails.plain()
    assert (await through_bob(tmp_path, kmes, sink, MARK, forged)).code == 250
    assert b"X-QuMail-Protection: none; required=aes\r\n" + mails.plain() in mails.unproven(sink.got[0].message)
    assert b"peer=alice" not in sink.got[0].message


SPELLINGS = {
    "a quoting sign": b'"Boss \\\\" <ceo@alice.example>, "b" <x@evil.example>',
    "a comment in a comment": b'(a (b) ") <ceo@alice.example>, "x" <x@evil.example>',
    "a blank": b"<ceo@ alice.example>",
    "a comment within": b"ceo@(c)alice.example",
    "a quoting sign in a comment": b"(\\\\) ann@alice.example (x)",
    "a comment that does not end": b'"x" <x@evil.example>, ( <ceo@alice.example>',
    "an encoded word": b"=?utf-8?q?ceo=40alice.example=2C?= <x@evil.example>",
    "a dot": b"ceo . x @ alice . example",
}


@pytest.mark.promise(
    "A sender who must write sealed is not impersonated by a From field that mail programs read otherwise"
)
@pytest.mark.parametrize("name", list(SPELLINGS))
async def test_no_spelling_of_an_author_gets_past(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, name: str) -> None:
    message = b"From: " + SPELLINGS[name] + b"\r\nTo: ben@bob.example\r\n\r\nPay them.\r\n"
    reply = await through_bob(tmp_path, kmes, sink, REFUSE, message, "x@evil.example")
    assert str(reply).startswith("550 5.7.1")
    assert not sink.got


async def test_mail_of_strangers_passes(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> None:
    message = mails.plain().replace(b"alice.example", b"stranger.example")
    assert (await through_bob(tmp_path, kmes, sink, REFUSE, message, "x@stranger.example")).code == 250
    assert sink.got[0].message.endswith(message)


@pytest.mark.in_process
@pytest.mark.parametrize(("require", "delivered"), [('"aes"', 1), ('"otp"', 0), ('"pqc"', 1)])
async def test_sealed_mail_is_measured_by_how_it_was_sealed_and_answered_alike(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, wire: Sink, log: LogCapture, require: str, delivered: int
) -> None:
    """What is too weak is put aside even where policy refuses: a refusal would tell whom the sealed envelope names."""
    alice = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address
    )  # fmt: skip
    async with serving(alice) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250
    policy = AES + f"require = {require}\n"
    assert (await through_bob(tmp_path, kmes, sink, policy, wire.got[0].message)).code == 250
    assert len(sink.got) == delivered
    kept = [each["reason"] for each in log.entries if each["event"] == "put_in_quarantine"]
    assert kept == ["unprotected"] * (1 - delivered)


async def test_sealed_mail_that_is_too_weak_can_be_marked(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, wire: Sink
) -> None:
    alice = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address)
    async with serving(alice) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250
    policy = AES + 'require = "otp"\nunprotected = "mark"\n'
    assert (await through_bob(tmp_path, kmes, sink, policy, wire.got[0].message)).code == 250
    assert (
        mails.untraced(sink.got[0].message)
        == b"X-QuMail-Protection: aes; peer=alice; author=peer; required=otp\r\n" + mails.plain()
    )
