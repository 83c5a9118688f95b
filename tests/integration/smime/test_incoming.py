"""Mail in at level smime: opened, verified, marked and handed on; what cannot be opened goes on as it came.
Standard: RFC 8551; `openssl cms` writes the messages.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.smime.directory import fingerprint
from tests.testlib.hop import Hop
from tests.testlib.openssl_cms import CLEAR, ENTITY, OPAQUE, encrypted, mail, signed
from tests.testlib.relay_command import run
from tests.testlib.sink import Sink
from tests.testlib.sites import relay_process
from tests.testlib.smime import ca, certified, key_pem, make_smime_site, opened_by_openssl, pem, write_secret
from tests.testlib.submit import submit

ANN, OTTO, BEN = "ann@alice.example", "otto@alice.example", "ben@bob.example"
OFFICE = certified("securemail@alice.example", number=100)
OFFICE_EC = certified("securemail@alice.example", kind="p256", number=101)
ANNS = certified(ANN, kind="p384", number=102)
BENS = certified(BEN, kind="p256", number=103)
CARLS = certified("carl@carol.example", number=104)
GATEWAY = certified("securemail@dora.example", number=105, issuer=ca("A CA of theirs", 97))
POLICIES = {
    "alice.example.toml": 'levels = ["plaintext"]\nreason = "inside"\n',
    "carol.example.toml": 'levels = ["smime"]\nrequire = "smime"\nunprotected = "refuse"\n',
    "dora.example.toml": 'levels = ["smime"]\nrequire = "smime"\nunprotected = "mark"\n',
    "default.toml": 'levels = ["plaintext"]\nreason = "test"\n',
}
KEYS = """
[[smime.keys]]
certificate = "ec.pem"
key = "ec.key"

[[smime.keys]]
certificate = "anns.pem"
key = "anns.key"
mailboxes = ["ann@alice.example"]
"""


@pytest.fixture
async def hop() -> AsyncIterator[Hop]:
    async with Hop() as hop:
        yield hop


async def test_mail_for_the_keys_of_the_site_arrives_opened_and_marked(tmp_path: Path, hop: Hop) -> None:
    site = make_smime_site(
        tmp_path / "alice", incoming=hop.address, outgoing=hop.address, policies=POLICIES, own=OFFICE,
        certificates={"dora.example": GATEWAY}, settings=f'anchors = ["anchors.pem"]\n{KEYS}',
    )  # fmt: skip
    (site.directory / "anchors.pem").write_bytes(pem(ca().certificate))
    for name, own in (("ec", OFFICE_EC), ("anns", ANNS)):
        (site.directory / f"{name}.pem").write_bytes(pem(own.certificate))
        write_secret(site.directory / f"{name}.key", key_pem(own))
    gcm, good = "aes-256-gcm", f"smime; signed=good; signer={BEN}"
    cases = [
        (mail(encrypted(signed(ENTITY, BENS, *OPAQUE), OFFICE, cipher=gcm)), good),
        (mail(encrypted(signed(ENTITY, BENS, *CLEAR), OFFICE_EC)), good),
        (mail(encrypted(signed(ENTITY, BENS), ANNS, cipher=gcm)), good),
        (mail(encrypted(ENTITY, OFFICE, cipher=gcm)), "smime; signed=no"),
        (mail(encrypted(ENTITY, OFFICE)), "smime; signed=no; unauthenticated=yes"),
        (mail(encrypted(signed(ENTITY, CARLS), OFFICE, cipher=gcm)), "smime; signed=bad"),
        (
            mail(encrypted(signed(ENTITY, GATEWAY), OFFICE), "dan@dora.example"),
            "smime; signed=good; signer=dora.example",
        ),
        (mail(encrypted(ENTITY, OFFICE, cipher=gcm), "dan@dora.example"), "smime; signed=no; required=smime"),
        (mail(ENTITY, "dan@dora.example"), "none; required=smime"),
        (mail(signed(ENTITY, BENS)), f"none; signed=good; signer={BEN}"),
    ]
    async with relay_process(site) as relay:
        incoming, forged = relay.addresses["incoming"], b"X-QuMail-Protection: smime; signed=good\r\n"
        for message, mark in cases:
            author = message[message.index(b"<") + 1 : message.index(b">")].decode()
            reply = await submit(incoming, forged + message, sender=author, recipients=[ANN])
            assert reply.code == 250, reply
            got = hop.got[-1]
            first, _, _ = got.message[got.message.index(b"X-QuMail") :].partition(b"\r\n")
            assert first.startswith(f"X-QuMail-Protection: {mark}; site=".encode()), (first, mark)
            assert got.message.count(b"X-QuMail-Protection") == 1
            assert b"The budget of the merger." in got.message
            # Else a bounce to anybody who sent a captured mail once more would quote what was opened.
            said = [each for each in hop.commands if each.startswith("MAIL")][-1]
            assert ("RET=HDRS" in said) == mark.startswith("smime")
        # A requirement is met by a good signature of that domain, which all senders are of.
        sealed = mail(encrypted(signed(ENTITY, CARLS), OFFICE, cipher=gcm), "carl@carol.example")
        stripped = mail(encrypted(ENTITY, OFFICE, cipher=gcm), "carl@carol.example")
        replies = [
            await submit(incoming, message, sender=sender, recipients=[ANN])
            for message, sender in (
                (sealed, "carl@carol.example"), (sealed, ""), (stripped, "carl@carol.example"),
                (cases[0][0], "carl@carol.example"), (sealed, "eve@dora.example"),
            )
        ]  # fmt: skip
        assert [each.code for each in replies] == [250, 250, 550, 550, 550]
    events = [json.loads(line) for line in relay.log.splitlines()]
    assert {each["protection"] for each in events if each["event"] == "opened_and_sent"} == {"smime"}
    assert b"merger" not in relay.log.encode()


async def test_what_is_not_opened_goes_on_as_it_came_and_each_recipient_gets_theirs(tmp_path: Path, sink: Sink) -> None:
    settings = "[[smime.keys]]" + KEYS.split("[[smime.keys]]")[2]
    site = make_smime_site(
        tmp_path / "alice", incoming=sink.address, outgoing=sink.address, policies=POLICIES, own=OFFICE,
        certificates={}, settings=settings,
    )  # fmt: skip
    (site.directory / "anns.pem").write_bytes(pem(ANNS.certificate))
    write_secret(site.directory / "anns.key", key_pem(ANNS))
    sealed = encrypted(signed(ENTITY, BENS), OFFICE)
    attack = b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\nContent-Type: text/html\r\n\r\n<img src='"
    unopened = [
        mail(attack + b"\r\n--x\r\n" + sealed + b"\r\n--x--\r\n"),
        mail(encrypted(ENTITY, CARLS)),
        mail(encrypted(ENTITY, CARLS, cipher="aes-256-gcm")),
        mail(sealed[: len(sealed) // 2] + b"\r\n"),
        mail(sealed.replace(sealed[-200:-150], b"A" * 50)),
    ]
    async with relay_process(site) as relay:
        incoming, outgoing = relay.addresses["incoming"], relay.addresses["outgoing"]
        for message in unopened:
            assert (await submit(incoming, message, sender=BEN, recipients=[ANN])).code == 250
            assert sink.got[-1].message.endswith(message)
            assert b"X-QuMail" not in sink.got[-1].message
            # A user's own S/MIME mail is not ours to refuse, whichever way it comes or goes.
            for sender, recipient in ((BEN, ANN), (ANN, BEN), (ANN, OTTO)):
                assert (await submit(outgoing, message, sender=sender, recipients=[recipient])).code == 250
                assert sink.got[-1].message.endswith(message)
        # Mail for the site that comes by the way out is opened; what leaves to others is not.
        assert (await submit(outgoing, mail(sealed), sender=BEN, recipients=[ANN])).code == 250
        assert b"The budget" in sink.got[-1].message
        both = mail(encrypted(ENTITY, OFFICE, CARLS, cipher="aes-256-gcm"))
        assert (await submit(outgoing, both, sender=ANN, recipients=["carl@carl.example"])).code == 250
        assert sink.got[-1].message.endswith(both)
        # Ann's key is for Ann alone.
        anns = mail(encrypted(ENTITY, ANNS, cipher="aes-256-gcm"))
        assert (await submit(incoming, anns, sender=BEN, recipients=[OTTO])).code == 250
        assert sink.got[-1].message.endswith(anns)
        before = len(sink.got)
        assert (
            await submit(
                incoming, anns.replace(b"Message-ID: <", b"Message-ID: <x"), sender=BEN, recipients=[ANN, OTTO]
            )
        ).code == 250
        opened = {got.recipients: b"The budget" in got.message for got in sink.got[before:]}
        assert opened == {(ANN,): True, (OTTO,): False}


async def test_a_colleague_who_changes_how_a_marked_mail_is_shown_or_answered_loses_its_mark(
    tmp_path: Path, sink: Sink
) -> None:
    site = make_smime_site(
        tmp_path / "alice", incoming=sink.address, outgoing=sink.address, own=OFFICE, certificates={BEN: BENS},
        policies=POLICIES,
    )  # fmt: skip
    text = b"Content-Type: text/plain\r\n\r\nPay Eve.\r\n--Only if Carol agrees.\r\n"
    async with relay_process(site) as relay:
        message = mail(encrypted(signed(text, BENS, *CLEAR), OFFICE, cipher="aes-256-gcm"))
        assert (await submit(relay.addresses["incoming"], message, sender=BEN, recipients=[ANN])).code == 250
        marked = sink.got[-1].message
        boundary = marked.partition(b'boundary="')[2].partition(b'"')[0]
        others = [
            marked.replace(boundary, b"Only", 1),
            marked.replace(b"multipart/signed", b"multipart/mixed", 1),
            b"Content-Transfer-Encoding: base64\r\n" + marked,
            b"Reply-To: eve@eve.example\r\n" + marked,
            b"Sender: boss@alice.example\r\n" + marked,
        ]
        for each in (marked, *others):
            assert (await submit(relay.addresses["outgoing"], each, sender=OTTO, recipients=[ANN])).code == 250
    assert [b"X-QuMail-Protection" in got.message for got in sink.got[1:]] == [True, *[False] * len(others)]


async def test_no_notice_of_success_tells_whether_a_forgery_was_opened(tmp_path: Path, hop: Hop) -> None:
    """Content in CBC can be changed: who hears which changes open learns it, block by block."""
    settings = "[[smime.keys]]" + KEYS.split("[[smime.keys]]")[2]
    site = make_smime_site(
        tmp_path / "alice", incoming=hop.address, own=OFFICE, certificates={}, policies=POLICIES, settings=settings
    )
    (site.directory / "anns.pem").write_bytes(pem(ANNS.certificate))
    write_secret(site.directory / "anns.key", key_pem(ANNS))
    both = mail(encrypted(ENTITY, OFFICE, ANNS))
    damaged = both[:-40] + both[-40:].replace(both[-30:-20], b"A" * 10)
    anns = mail(encrypted(ENTITY, ANNS))
    said = []
    async with relay_process(site) as relay:
        for message in (both, damaged, anns, mail(encrypted(ENTITY, CARLS))):
            begin = len(hop.commands)
            reply = await submit(
                relay.addresses["incoming"], message, sender=BEN, recipients=[ANN, OTTO], options=["RET=FULL"],
                parameters=dict.fromkeys((ANN, OTTO), "NOTIFY=SUCCESS,FAILURE"),
            )  # fmt: skip
            assert reply.code == 250
            commands = hop.commands[begin:]
            said.append({"SUCCESS" in each for each in commands if each.startswith("RCPT")})
            said.append({"RET=HDRS" in each for each in commands if each.startswith("MAIL")})
    assert [b"The budget" in got.message for got in hop.got] == [True, False, True, False, False]
    assert said == [{False}, {True}] * 3 + [{True}, {False}], "only what is for others goes on as it came"


async def test_what_was_opened_for_one_and_put_aside_is_released_to_nobody_else(tmp_path: Path, sink: Sink) -> None:
    """Else a captured mail, sent once more to somebody else here, would reach them opened."""
    site = make_smime_site(
        tmp_path / "alice", incoming=sink.address, own=OFFICE, certificates={},
        policies=POLICIES | {"dora.example.toml": 'levels = ["smime"]\nrequire = "smime"\nunprotected = "quarantine"\n'},
        settings="[[smime.keys]]" + KEYS.split("[[smime.keys]]")[2],
    )  # fmt: skip
    (site.directory / "anns.pem").write_bytes(pem(ANNS.certificate))
    write_secret(site.directory / "anns.key", key_pem(ANNS))
    both, later = (
        mail(encrypted(ENTITY, ANNS, cipher=cipher), "dan@dora.example") for cipher in ("aes-256-gcm", "aes-256-cbc")
    )
    async with relay_process(site) as relay:
        for message, recipients in ((both, [ANN, OTTO]), (later, [ANN]), (later, [OTTO])):
            reply = await submit(relay.addresses["incoming"], message, sender="dan@dora.example", recipients=recipients)
            assert reply.code == 250, reply
    assert sink.got == []
    _, _, out = await run("quarantine", "list", "--json", "--config", site.config_file)
    for each in json.loads(out):
        status, err, _ = await run("quarantine", "release", "--config", site.config_file, each["id"])
        assert status == 0, err
    got = [(name, b"The budget" in got.message) for got in sink.got for name in got.recipients]
    assert sorted(got) == [(ANN, True), (ANN, True), (OTTO, False), (OTTO, False)]


@pytest.mark.promise(
    "Certificates that come with signed mail seal nothing and prove nothing until the administrator accepts them"
)
async def test_a_certificate_that_came_with_a_signature_counts_once_it_is_accepted(tmp_path: Path, sink: Sink) -> None:
    site = make_smime_site(
        tmp_path / "alice", incoming=sink.address, outgoing=sink.address, own=OFFICE, certificates={},
        policies=POLICIES | {"bob.example.toml": 'levels = ["smime"]\n'}, settings='anchors = ["anchors.pem"]',
    )  # fmt: skip
    (site.directory / "anchors.pem").write_bytes(pem(ca().certificate))
    forged = certified(BEN, number=106, issuer=ca("A CA of theirs", 97))
    only_signs = certified("eve@eve.example", number=107, usage=("digital_signature",))
    arriving = [
        (signed(ENTITY, forged), BEN),
        (signed(ENTITY, BENS), BEN),
        (signed(ENTITY, CARLS), BEN),
        (signed(ENTITY, only_signs), "eve@eve.example"),
        (signed(ENTITY, ANNS), ANN),
        (signed(ENTITY, CARLS).replace(b"budget", b"ticket"), "carl@carol.example"),
    ]

    async def certificates(*words: str, stdin: bytes = b"") -> str:
        status, err, out = await run("certificates", words[0], "--config", site.config_file, *words[1:], stdin=stdin)
        assert status == 0, err
        return out.decode()

    async with relay_process(site) as relay:
        for entity, author in arriving:
            message = mail(encrypted(entity, OFFICE, cipher="aes-256-gcm"), author)
            reply = await submit(relay.addresses["incoming"], message, sender=author, recipients=[ANN])
            assert reply.code == (550 if author == "carl@carol.example" else 250)
        # The one of the known CA comes first; the other is there for the administrator to judge.
        offered = json.loads(await certificates("list", "--offered", "--json"))
        assert [(row["for"], row["fingerprint"]) for row in offered] == [
            (BEN, fingerprint(BENS.certificate)), (BEN, fingerprint(forged.certificate)),
        ]  # fmt: skip
        assert json.loads(await certificates("list", "--json")) == []
        outgoing = relay.addresses["outgoing"]
        assert (await submit(outgoing, mail(ENTITY, ANN, BEN), sender=ANN, recipients=[BEN])).code == 451
        _, _, said = await run("check", "--config", site.config_file)
        assert "1 have offered theirs: `qumail-relay certificates list --offered`" in " ".join(said.decode().split())
        said_to_ann = await certificates("accept", "Ben@bob.example", stdin=b"y\nn\n")
        assert said_to_ann.count("Use it for ben@bob.example?") == 2
        assert fingerprint(BENS.certificate) in said_to_ann.replace("\n" + 13 * " ", "")
        assert (await submit(outgoing, mail(ENTITY, ANN, BEN), sender=ANN, recipients=[BEN])).code == 250
        assert opened_by_openssl(tmp_path, sink.got[-1].message, BENS).endswith(b"merger.\r\n")
        await certificates("remove", "--offered", BEN)
        assert json.loads(await certificates("list", "--offered", "--json")) == []
        again = mail(encrypted(signed(ENTITY, BENS), OFFICE, cipher="aes-256-gcm"))
        await submit(relay.addresses["incoming"], again, sender=BEN, recipients=[ANN])
        assert json.loads(await certificates("list", "--offered", "--json")) == []
