"""Mail out at level smime: who shares a copy, who gets none, and what is recorded.
Standard: policies/README.md (no certificate is no level), RFC 5321 7.2 (blind copies).
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from relay.audit.entries import LEDGER
from relay.audit.reading import records
from relay.config import TCPAddress
from relay.formats import mime
from relay.journey import planner
from relay.smime.sealing import SMIMESealer
from tests.testlib import mails
from tests.testlib.relay_command import run
from tests.testlib.sink import Sink
from tests.testlib.sites import relay_process, serving
from tests.testlib.smime import ca, certified, make_smime_site, opened_by_openssl
from tests.testlib.submit import submit

BEN, BEA, BOTH = (
    certified("ben@bob.example"),
    certified("bea@bob.example", number=1),
    certified("securemail@carol.example", number=2),
)
EC = certified("eve@dora.example", kind="p384")
CERTIFICATES = {
    "ben@bob.example": BEN,
    "bea@bob.example": BEA,
    "carol.example": BOTH,
    "eve@dora.example": EC,
    "ended@dora.example": certified("ended@dora.example", days=(-9, -1)),
}
POLICIES = {
    "default.toml": 'levels = ["smime"]\n',
    "peerless.example.toml": 'levels = ["aes", "smime"]\n',
    "refuse.example.toml": 'levels = ["smime"]\notherwise = "refuse"\n',
    "alice.example.toml": 'levels = ["plaintext"]\nreason = "inside"\n',
    "list.example.toml": 'levels = ["pqc", "smime"]\n',
}
MESSAGE = mails.plain()


async def test_each_certificate_has_a_copy_and_nobody_without_one_gets_the_mail(tmp_path: Path, sink: Sink) -> None:
    listed = certified("lea@list.example", number=3)
    certificates = CERTIFICATES | {"list.example": listed}
    site = make_smime_site(tmp_path / "alice", outgoing=sink.address, policies=POLICIES, certificates=certificates)
    people = [
        "ben@bob.example",
        "bea@bob.example",
        "carl@carol.example",
        "cleo@carol.example",
        "eve@dora.example",
        "lea@list.example",
    ]
    async with relay_process(site) as relay:
        outgoing = relay.addresses["outgoing"]
        assert (await submit(outgoing, MESSAGE, recipients=people)).code == 250
        assert {each.recipients for each in sink.got} == {
            ("ben@bob.example",), ("bea@bob.example",), ("carl@carol.example", "cleo@carol.example"), ("eve@dora.example",),
            ("lea@list.example",),
        }  # fmt: skip
        keys = {
            "ben@bob.example": BEN,
            "bea@bob.example": BEA,
            "carl@carol.example": BOTH,
            "eve@dora.example": EC,
            "lea@list.example": listed,
        }
        for got in sink.got:
            entity = opened_by_openssl(tmp_path, got.message, keys[got.recipients[0]])
            assert mime.split(entity)[1] == mime.split(MESSAGE)[1]
            assert b"Quarterly" not in got.message
        for recipient, reply in {
            "ended@dora.example": "451 4.7.1", "nobody@bob.example": "451 4.7.1", "x@refuse.example": "550 5.7.1",
            "x@peerless.example": "451 4.7.1",
        }.items():  # fmt: skip
            said = str(await submit(outgoing, MESSAGE, recipients=[recipient]))
            assert said.startswith(reply), (recipient, said)
        foreign = await submit(outgoing, MESSAGE, sender="carol@carol.example", recipients=["ben@bob.example"])
        assert str(foreign).startswith("550 5.7.1"), foreign
        assert (await submit(outgoing, MESSAGE, sender="", recipients=["ben@bob.example"])).code == 250
        assert len(sink.got) == 6
        # A mail server that brings back what it got, as `postsuper -r` has it do, gets no second layer.
        for got in sink.got[:5]:
            again = b"Received: from a by b; now\r\nX-Scanned: yes\r\n" + got.message
            assert (await submit(outgoing, again, recipients=list(got.recipients))).code == 250
            assert mime.split(sink.got[-1].message)[1] == mime.split(got.message)[1]
        forged = sink.got[0].message.replace(b"X-QuMail-Sealed: ", b"X-QuMail-Sealed: AAAA", 1)
        assert (await submit(outgoing, forged, recipients=["ben@bob.example"])).code == 250
        assert mime.split(sink.got[-1].message)[1] != mime.split(forged)[1]
    lines = [json.loads(line) for line in relay.log.splitlines()]
    assert {each["protection"] for each in lines if each["event"] == "sealed_and_sent"} == {"smime"}
    entries = list(records(site.directory / "audit"))
    downgraded = [each for each in entries if each["event"] in LEDGER]
    assert {each["level"] for each in downgraded} == {"smime"}


@pytest.mark.in_process
async def test_more_copies_than_there_is_memory_for_leave_at_the_next_attempts(
    tmp_path: Path, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "MAX_COPIES_OCTETS", 3 * len(MESSAGE) // 2)
    people = {f"p{number}@bob.example": certified(f"p{number}@bob.example", kind="p256") for number in range(6)}
    site = make_smime_site(tmp_path / "alice", outgoing=sink.address, policies=POLICIES, certificates=people)
    replies: list[str] = []
    async with serving(site) as addresses:
        while not replies or replies[-1].startswith("451 4.3.0"):
            replies.append(str(await submit(addresses["outgoing"], MESSAGE, recipients=list(people)))[:9])
    assert replies == ["451 4.3.0", "451 4.3.0", "250 2.0.0"]
    assert sorted(name for got in sink.got for name in got.recipients) == sorted(people)


@pytest.mark.in_process
async def test_others_have_their_turn_between_the_signatures_of_a_mail(
    tmp_path: Path, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = {f"p{number}@bob.example": certified(f"p{number}@bob.example", kind="p256") for number in range(6)}
    site = make_smime_site(tmp_path / "alice", outgoing=sink.address, policies=POLICIES, certificates=people)
    turns, seen, seal = [0], list[int](), SMIMESealer.seal

    async def others() -> None:
        while True:
            turns[0] += 1
            await asyncio.sleep(0)

    def noted(*args: Any) -> bytes:
        seen.append(turns[0])
        return seal(*args)

    monkeypatch.setattr(SMIMESealer, "seal", noted)
    task = asyncio.create_task(others())
    async with serving(site) as addresses:
        assert (await submit(addresses["outgoing"], MESSAGE, recipients=list(people))).code == 250
    task.cancel()
    assert len(set(seen)) == len(people)


async def test_no_copy_is_kept_while_the_next_server_has_no_room(tmp_path: Path, sink: Sink) -> None:
    """A copy cost no key, and there may be as many as recipients."""
    site = make_smime_site(tmp_path / "alice", outgoing=sink.address, policies=POLICIES, certificates=CERTIFICATES)
    async with relay_process(site) as relay:
        sink.on_data += ["452 4.3.1 no room", "452 4.3.1 no room"]
        people = ["ben@bob.example", "bea@bob.example"]
        assert (await submit(relay.addresses["outgoing"], MESSAGE, recipients=people)).code == 451
        with closing(sqlite3.connect(site.directory / "relay.db")) as store:
            assert store.execute("SELECT count(*) FROM sealed_copies").fetchall() == [(0,)]
        assert (await submit(relay.addresses["outgoing"], MESSAGE, recipients=people)).code == 250
    assert [got.recipients for got in sink.got] == [(each,) for each in people]


async def test_explain_and_check_name_what_is_wrong_with_a_certificate(tmp_path: Path) -> None:
    site = make_smime_site(
        tmp_path / "alice", outgoing=TCPAddress("127.0.0.1", 1), policies=POLICIES, certificates=CERTIFICATES,
        own=certified("securemail@alice.example", days=(-300, 10)), settings='crls = ["delta.crl"]',
    )  # fmt: skip
    now, issuer = datetime.now(UTC), ca()
    crl = x509.CertificateRevocationListBuilder().issuer_name(issuer.certificate.subject).last_update(now)
    crl = crl.next_update(now + timedelta(days=9)).add_extension(x509.DeltaCRLIndicator(1), critical=True)
    (site.directory / "delta.crl").write_bytes(crl.sign(issuer.key, hashes.SHA256()).public_bytes(Encoding.PEM))
    _, _, said = await run("policy", "explain", "--config", site.config_file, "ann@alice.example", "ended@dora.example")
    assert "smime: no usable certificate of ended@dora.example" in " ".join(said.decode().split())
    assert "it ended on" in said.decode()
    status, _, said = await run("check", "--config", site.config_file)
    told = " ".join(said.decode().split())
    assert status == 1
    assert "no usable certificate of ended@dora.example" in told
    assert "no certificate of [smime] may sign in 30 days: renew it" in told
    assert "CN=Example Mail CA: this CRL is only a part (a critical extension), and makes no signature good" in told
    text = site.config_file.read_text()
    site.config_file.write_text(text.partition("[[smime.keys]]")[0])
    _, _, said = await run("check", "--config", site.config_file)
    assert "smime cannot be had: relay.toml has no [smime]" in " ".join(said.decode().split())
