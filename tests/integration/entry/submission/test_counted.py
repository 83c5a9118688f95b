"""What users submit is counted as such, and what they are not let do before there is a mail.
Standard: what was answered is what /metrics tells; no user's name and no address becomes a label.
"""

from __future__ import annotations

from pathlib import Path

import aiohttp

from tests.integration.entry.submission.conftest import Start
from tests.testlib import mails
from tests.testlib.status_numbers import StatusNumbers


async def told(socket: Path) -> tuple[str, StatusNumbers]:
    connector = aiohttp.UnixConnector(str(socket))
    async with aiohttp.ClientSession(connector=connector) as session, session.get("http://relay/metrics") as response:
        text = await response.text()
    return text, StatusNumbers.of(text)


async def test_what_users_submit_and_may_not_submit_is_counted(start: Start, tmp_path: Path) -> None:
    socket = tmp_path / "status.sock"
    async with start(f'\n[status]\nlisten = "unix:{socket}"\n') as server, server.user() as ann:
        assert (await ann.mail(mails.plain())).startswith("250")
        assert (await ann.ask("MAIL FROM:<boss@alice.example>")).startswith("553")
        text, found = await told(socket)
    listener = {"direction": "outgoing", "listener": "submission"}
    assert found.sum("qumail_mails_total", **listener, level="plaintext", outcome="delivered") == 1
    assert found.sum("qumail_mails_total") == 1
    assert found.sum("qumail_rejections_total", **listener, reason="SenderNotAllowed") == 1
    assert found.sum("qumail_rejections_total") == 1
    assert "boss" not in text
