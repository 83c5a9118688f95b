"""Whatever is wrong, the sender hears the right 4xx or 5xx, the log has the cause, and nothing leaves in clear.
Standard: RFC 5321 reply codes, RFC 3463 enhanced status codes; a held or refused mail is nowhere else.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import LogCapture

from relay.audit.entries import LEDGER
from relay.audit.reading import records
from relay.config import TCPAddress
from relay.errors import ConfigError
from relay.formats import mime
from relay.keys.group import LAG_WAITING
from relay.kme import DevelopmentKMEs, LinkSettings, Misbehaviour
from tests.conftest import Pair
from tests.testlib import mails
from tests.testlib.ports import free_address
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site, serving
from tests.testlib.submit import submit

MARK = b"The figures are 42"


def causes(log: LogCapture) -> str:
    """What the log says about why something was not done."""
    return "\n".join(str(entry.get("cause", "")) for entry in log.entries)


@pytest.fixture
def alice(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> Callable[..., Any]:
    """Alice's relay with what a test wants to be different; its next hop is the sink."""

    @asynccontextmanager
    async def start(*, next_hop: TCPAddress | None = None, kme_url: str = "", **how: Any) -> AsyncIterator[TCPAddress]:
        site = make_site(
            tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kme_url or kmes.urls[0],
            outgoing=next_hop or sink.address, **how,
        )  # fmt: skip
        async with serving(site) as addresses:
            yield addresses["outgoing"]

    return start


def closed_port() -> TCPAddress:
    """An address that nobody listens on."""
    return free_address()


@pytest.mark.in_process
async def test_a_recipient_of_no_known_peer_is_refused(alice: Any, sink: Sink, log: LogCapture) -> None:
    async with alice() as relay:
        reply = await submit(relay, mails.plain(), recipients=["x@nowhere.example"])
    assert str(reply).startswith("550 5.7.1")
    assert "no peer is known for x@nowhere.example" in causes(log)
    assert not sink.got


@pytest.mark.in_process
async def test_a_recipient_that_no_policy_covers_is_held(alice: Any, sink: Sink, log: LogCapture) -> None:
    async with alice(policies={"bob.example.toml": 'levels = ["aes"]\n'}) as relay:
        reply = await submit(relay, mails.plain(), recipients=["x@nowhere.example"])
        assert str(reply).startswith("451 4.7.1")
        assert (await submit(relay, mails.plain())).code == 250
    assert "nowhere.example" in causes(log)
    assert len(sink.got) == 1


async def test_policy_can_refuse_instead(alice: Any, sink: Sink) -> None:
    async with alice(policies={"default.toml": 'levels = ["pqc+aes", "pqc"]\notherwise = "refuse"\n'}) as relay:
        reply = await submit(relay, mails.plain())
    assert str(reply).startswith("550 5.7.1")
    assert not sink.got


@pytest.mark.in_process
async def test_a_policy_with_a_typo_stops_the_start_and_names_file_and_line(alice: Any) -> None:
    with pytest.raises(ConfigError, match=r"default\.toml:2: levls: unknown setting; did you mean 'levels'\?"):
        async with alice(policies={"default.toml": '# who gets what\nlevls = ["aes"]\n'}):
            pass


@pytest.mark.in_process
async def test_only_the_plaintext_policy_lets_mail_out_in_clear_and_the_log_says_so(
    alice: Any, sink: Sink, log: LogCapture
) -> None:
    async with alice(policies={"bob.example.toml": 'levels = ["plaintext"]\n'}) as relay:
        assert (await submit(relay, mails.plain())).code == 250
    assert MARK in sink.got[0].message
    [entry] = [entry for entry in log.entries if entry["event"] == "sent_in_clear"]
    assert (entry["log_level"], entry["protection"]) == ("warning", "plaintext")


@pytest.mark.in_process
async def test_mail_that_stays_in_our_own_domains_is_no_leak(
    tmp_path: Path, alice: Any, sink: Sink, log: LogCapture
) -> None:
    """One real leak is to be seen among much mail at home: neither a warning nor a ledger line is about the latter."""
    clear = 'levels = ["plaintext"]\n'
    policies = {"alice.example.toml": clear, "open.example.toml": clear, "alice.example.org.toml": clear}
    everybody = ["bea@Alice.Example", "press@open.example", "x@alice.example.org"]
    async with alice(policies=policies) as relay:
        assert (await submit(relay, mails.plain(), recipients=everybody)).code == 250
        ledger = list(records(tmp_path / "alice" / "audit", events=LEDGER))
    assert {each for got in sink.got for each in got.recipients} == set(everybody)
    sent = [entry for entry in log.entries if entry["event"] in ("sent_in_clear", "delivered_inside")]
    assert sorted((entry["event"], entry["log_level"], entry["recipients"]) for entry in sent) == [
        ("delivered_inside", "info", 1),
        ("sent_in_clear", "warning", 2),
    ]
    assert sum(len(entry["recipients"]) for entry in ledger) == 2


@pytest.mark.in_process
async def test_a_kme_that_is_down_holds_the_mail(
    alice: Any, kmes: DevelopmentKMEs, sink: Sink, log: LogCapture
) -> None:
    async with alice(kme_url=f"https://{closed_port()}") as relay:
        reply = await submit(relay, mails.plain())
    assert str(reply).startswith("451 4.7")
    assert "127.0.0.1" in causes(log)
    assert not sink.got


@pytest.mark.in_process
@pytest.mark.parametrize(
    ("status", "content_type", "body"),
    [
        (200, "text/html", "<html>Bad gateway</html>"),
        (504, "text/html", "<html>Gateway time-out</html>"),
        (200, "application/json", '{"keys": []}'),
        (200, "application/json", "[" * 100_000),
        (200, "application/json", json.dumps({"keys": [{"key_ID": "a", "key": base64.b64encode(bytes(16)).decode()}]})),
        (200, "application/json", json.dumps({"keys": [{"key_ID": "a", "key": "not base64!"}]})),
        (401, "application/json", ""),
    ],
    ids=["html", "504", "no keys", "deep", "short key", "not base64", "401"],
)  # fmt: skip
async def test_a_kme_that_answers_nonsense_holds_the_mail(
    alice: Any, kmes: DevelopmentKMEs, sink: Sink, log: LogCapture, status: int, content_type: str, body: str
) -> None:
    kmes.km1.decide = lambda _: Misbehaviour("http", status, body, (("Content-Type", content_type),))
    async with alice() as relay:
        reply = await submit(relay, mails.plain())
    assert kmes.km1.requests
    assert str(reply).startswith("451 4.7")
    assert kmes.km1.url in causes(log) or "key" in causes(log)
    assert not sink.got


@pytest.mark.in_process
async def test_a_peer_whose_sae_the_kme_does_not_know_keeps_no_mail_to_another_waiting(alice: Any, sink: Sink) -> None:
    carol = '[peers.carol]\ndomains = ["carol.example"]\nsae_id = "9"\nkme_groups = ["alice-bob"]\n'
    async with alice(peer_settings=carol) as relay, asyncio.timeout(30):
        assert (await submit(relay, mails.plain(), recipients=["x@carol.example"])).code == 451
        for _ in range(12):
            assert (await submit(relay, mails.plain())).code == 250
    assert len(sink.got) == 12


@pytest.mark.in_process
async def test_a_next_hop_that_is_down_holds_the_mail(alice: Any, log: LogCapture) -> None:
    nobody = closed_port()
    async with alice(next_hop=nobody) as relay:
        reply = await submit(relay, mails.plain())
    assert str(reply).startswith("451 4.4.1")
    assert str(nobody) in causes(log)


@pytest.mark.in_process
@pytest.mark.parametrize(("said", "expected"), [("451 4.2.0 busy", "451 4.2.0"), ("550 5.1.1 unknown", "554 5.1.1")])
async def test_what_the_next_hop_says_is_passed_back(
    alice: Any, sink: Sink, log: LogCapture, said: str, expected: str
) -> None:
    async with alice() as relay:
        sink.on_data = [said]
        assert str(await submit(relay, mails.plain())).startswith(expected)
        sink.on_rcpt = {"ben@bob.example": said}
        assert str(await submit(relay, mails.plain())).startswith(expected)
    assert said in causes(log)
    assert not sink.got


@pytest.mark.parametrize("body", [b"x\ny\r\n", b"x\n.\r\nMAIL FROM:<evil@x>\r\n", b"x\r\n.\ny\r\n", b"x\ry\r\n"])
async def test_bare_cr_and_lf_are_refused_and_end_nothing(alice: Any, sink: Sink, body: bytes) -> None:
    async with alice() as relay:
        reply = await submit(relay, b"Subject: x\r\n\r\n" + body)
    assert str(reply).startswith("554 5.6.0")
    assert not sink.got


@pytest.mark.parametrize("blank", [b" ", b"\t"])
async def test_a_first_line_that_would_continue_our_own_mark_is_refused(alice: Any, sink: Sink, blank: bytes) -> None:
    async with alice() as relay:
        reply = await submit(relay, blank + b"; peer=bank\r\n" + mails.plain())
    assert str(reply).startswith("554 5.6.0")
    assert not sink.got


async def test_a_message_over_the_limit_is_refused_whether_its_size_was_said_or_not(alice: Any, sink: Sink) -> None:
    async with alice(settings='max_message_size = "1 MiB"') as relay:
        said = await submit(relay, mails.plain(), options=["SIZE=2000000"])
        unsaid = await submit(relay, mails.random_attachment(2_000_000))
        just_fits = await submit(relay, mails.plain(body="x" * 70 + "\r\n") + b"y" * (2**20 - 400) + b"\r\n")
    assert str(said).startswith("552 5.3.4")
    assert str(unsaid).startswith("552 5.3.4")
    assert just_fits.code == 250
    assert len(sink.got) == 1


@pytest.fixture
async def captured(pair: Pair, tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink) -> bytes:
    """A sealed message on its way to Bob, whose key is still at Bob's KME."""
    site = make_site(tmp_path / "alice2", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address)
    async with serving(site) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250
    return wire.got[0].message


def _changed(message: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The sealed message with its DER changed."""
    return mime.sealed_message(message, change(mime.sealed_content(message)))


def put_aside(log: LogCapture) -> list[str]:
    """The reasons why messages were put in quarantine."""
    return [entry["reason"] for entry in log.entries if entry["event"] == "put_in_quarantine"]


@pytest.mark.in_process
async def test_a_flipped_bit_is_put_aside_and_the_untouched_message_still_opens(
    pair: Pair, captured: bytes, sink: Sink, log: LogCapture
) -> None:
    flipped = _changed(captured, lambda der: der[:-20] + bytes([der[-20] ^ 1]) + der[-19:])
    assert (await submit(pair.incoming, flipped)).code == 250
    assert put_aside(log) == ["tampered"]
    assert "was changed on the way" in causes(log)
    assert not sink.got
    assert (await submit(pair.incoming, captured)).code == 250
    assert sink.got[0].message.endswith(b"\r\n" + mails.plain())


@pytest.mark.in_process
async def test_trailing_garbage_is_put_aside(pair: Pair, captured: bytes, sink: Sink, log: LogCapture) -> None:
    assert (await submit(pair.incoming, _changed(captured, lambda der: der + b"\0"))).code == 250
    assert (await submit(pair.incoming, captured + b"-- \r\nan added footer\r\n")).code == 250
    assert put_aside(log) == ["unknown-format", "unknown-format"]
    assert not sink.got


@pytest.mark.in_process
async def test_a_message_for_another_site_is_put_aside(
    pair: Pair, captured: bytes, sink: Sink, log: LogCapture
) -> None:
    other = _changed(captured, lambda der: der.replace(b"\x0c\x011", b"\x0c\x019"))
    assert (await submit(pair.incoming, other)).code == 250
    assert (put_aside(log), sink.got) == (["wrong-site"], [])
    assert "sealed for SAE '9'" in causes(log)


@pytest.mark.in_process
async def test_an_unknown_key_holds_the_mail(
    tmp_path: Path,
    kmes: DevelopmentKMEs,
    sink: Sink,
    wire: Sink,
    log: LogCapture,
) -> None:
    bob = make_site(
        tmp_path / "bob",
        "bob",
        state=kmes.state_dir,
        kme_url=kmes.urls[1],
        incoming=sink.address,
        kme_settings="lag_patience = 0",
    )
    alice = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address)
    async with AsyncExitStack() as stack:
        outgoing = (await stack.enter_async_context(serving(alice)))["outgoing"]
        incoming = (await stack.enter_async_context(serving(bob)))["incoming"]
        await submit(outgoing, mails.plain())
        [key_ID] = [entry["key_IDs"][0] for entry in log.entries if entry["event"] == "sealed_and_sent"]
        unknown = key_ID[:-4] + ("0000" if not key_ID.endswith("0000") else "1111")
        message = _changed(wire.got[0].message, lambda der: der.replace(key_ID.encode(), unknown.encode()))
        reply = await submit(incoming, message)
    assert str(reply).startswith("451 4.7.5")
    assert unknown in causes(log)
    assert not sink.got


async def test_a_key_that_has_not_arrived_yet_is_waited_for(tmp_path: Path, sink: Sink) -> None:
    async with AsyncExitStack() as stack:
        slow = DevelopmentKMEs(state_dir=tmp_path / "kme", host="127.0.0.1", ports=(0, 0), link=LinkSettings(lag=0.5))
        kmes = await stack.enter_async_context(slow)
        bob = make_site(tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=sink.address)
        incoming = (await stack.enter_async_context(serving(bob)))["incoming"]
        alice = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=incoming)
        outgoing = (await stack.enter_async_context(serving(alice)))["outgoing"]
        assert (await submit(outgoing, mails.plain())).code == 250
    assert sink.got[0].message.endswith(b"\r\n" + mails.plain())


@pytest.mark.in_process
async def test_mail_with_keys_that_never_come_takes_a_few_connections_at_most_and_each_of_them_once(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, wire: Sink, log: LogCapture
) -> None:
    bob = make_site(
        tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=sink.address,
        kme_settings="lag_patience = 3600",
    )  # fmt: skip
    alice = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address)
    async with AsyncExitStack() as stack:
        outgoing = (await stack.enter_async_context(serving(alice)))["outgoing"]
        incoming = (await stack.enter_async_context(serving(bob)))["incoming"]
        for text in ("one", "two"):
            await submit(outgoing, mails.plain(body=text))
        [forged_id, _] = [entry["key_IDs"][0] for entry in log.entries if entry["event"] == "sealed_and_sent"]

        def forged(number: int) -> bytes:
            other = f"{number:04x}"
            unknown = forged_id[:-4] + (other if not forged_id.endswith(other) else "ffff")
            return _changed(wire.got[0].message, lambda der: der.replace(forged_id.encode(), unknown.encode()))

        waiting = [asyncio.create_task(submit(incoming, forged(number))) for number in range(LAG_WAITING)]
        further = asyncio.create_task(submit(incoming, forged(LAG_WAITING)))
        done, _ = await asyncio.wait([*waiting, further], return_when=asyncio.FIRST_COMPLETED)
        assert [str(each.result())[:9] for each in done] == ["451 4.7.5"], "one of them found no place to wait"
        assert (await submit(incoming, wire.got[1].message)).code == 250, "real mail goes on meanwhile"
        for each in {*waiting, further} - done:
            each.cancel()
    assert len(sink.got) == 1


async def test_ordinary_mail_and_what_others_sealed_pass_unopened(pair: Pair, sink: Sink, captured: bytes) -> None:
    plain = mails.plain()
    assert (await submit(pair.incoming, plain, sender="x@stranger.example")).code == 250
    assert sink.got[0].message.endswith(plain)
    others = _changed(captured, lambda der: b"\x30\x03\x02\x01\x00")
    assert (await submit(pair.incoming, others, sender="x@stranger.example")).code == 250
    assert sink.got[1].message.endswith(others)


@pytest.mark.in_process
@pytest.mark.parametrize("level", ["pqc", "rsa"])
async def test_a_certificate_that_is_missing_when_the_mail_is_sealed_holds_it(
    alice: Any, sink: Sink, log: LogCapture, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    """It was there a moment before, when the level was chosen."""
    monkeypatch.setattr(f"relay.schemes.{level}.{level.upper()}.obstacle", lambda *_: "")
    async with alice(policies={"default.toml": f'levels = ["{level}"]\n'}) as relay:
        reply = await submit(relay, mails.plain())
    assert str(reply).startswith("451 4.7.5")
    assert f"level {level} without certificates" in causes(log)
    assert not sink.got


@pytest.mark.in_process
async def test_keys_that_make_no_pad_hold_the_mail(
    alice: Any, sink: Sink, log: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a receiver refuses its sender has no part in: the mail waits until the fault is mended."""
    monkeypatch.setattr("relay.schemes.otp.MIN_KEY_OCTETS", 100_000)
    async with alice(policies={"default.toml": 'levels = ["otp"]\n'}) as relay:
        reply = await submit(relay, mails.plain())
    assert str(reply).startswith("451 4.7.5")
    assert "is shorter than 100000 octets" in causes(log)
    assert not sink.got
