"""The last look before a message leaves: a fault in everything before it still lets nothing out in clear.
Standard: each case is a message that some fault could have produced.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from relay import app, mime
from relay.errors import TrippedWire
from relay.kme import DevelopmentKMEs
from relay.levels import Sealed
from relay.levels.aes import AES
from relay.tripwire import check_sealed
from tests.levels.test_aes import PARTIES
from tests.testlib import mails
from tests.testlib.keys import MemoryKeys
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site
from tests.testlib.submit import submit


async def _sealed(original: bytes = b"") -> bytes:
    sealed = await AES().seal(mime.wrap_payload(b"x" * 500), PARTIES, MemoryKeys())
    return b"Received: by relay; now\r\n" + mime.sealed_message(original or mails.plain(), sealed.der)


async def test_sealed_messages_pass() -> None:
    for original in (mails.plain(), mails.random_attachment(100), b"\r\n", b"To: a@b,\r\n\tc@d\r\n\r\nx\r\n"):
        check_sealed(await _sealed(original))


CHANGES = {
    "plaintext instead": lambda m: mails.plain(),
    "plaintext body": lambda m: m.partition(b"\r\n\r\n")[0] + b"\r\n\r\nThe figures are 42\r\n",
    "plaintext in front": lambda m: m.replace(b"\r\n\r\n", b"\r\n\r\nThe figures are 42\r\n", 1),
    "plaintext behind": lambda m: m + b"The figures are 42\r\n",
    "no body": lambda m: m.partition(b"\r\n\r\n")[0],
    "empty body": lambda m: m.partition(b"\r\n\r\n")[0] + b"\r\n\r\n",
    "subject": lambda m: m.replace(b"[...]", b"Quarterly figures"),
    "two subjects": lambda m: b"Subject: Quarterly figures\r\n" + m,
    "field": lambda m: b"X-Project: Zeus\r\n" + m,
    "bcc": lambda m: b"Bcc: a@b\r\n" + m,
    "no field": lambda m: b"The figures are 42\r\n" + m,
    "continuation first": lambda m: b" The figures are 42\r\n" + m,
    "two types": lambda m: b"Content-Type: text/plain\r\n" + m,
    "type": lambda m: m.replace(b"authEnveloped-data", b"signed-data"),
    "encoding": lambda m: m.replace(b"base64", b"8bit"),
    "other cms": lambda m: mime.sealed_message(m, b"\x30\x1f" + b"\x06\x09" + bytes(29)),
    "cut": lambda m: m[: len(m) - 200] + b"\r\n",
}


@pytest.mark.parametrize("change", CHANGES)
async def test_everything_else_trips_it(change: str) -> None:
    with pytest.raises(TrippedWire):
        check_sealed(CHANGES[change](await _sealed()))  # type: ignore[no-untyped-call]


async def test_a_level_that_does_not_seal_holds_the_mail(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: AES, payload: bytes, *_: object) -> Sealed:
        return Sealed(payload)

    monkeypatch.setattr(AES, "seal", broken)
    site = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address)
    async with app.running(site.config) as addresses:
        reply = await submit(addresses["outgoing"], mails.plain())
    assert str(reply).startswith("451 4.3.0")
    assert not sink.got
