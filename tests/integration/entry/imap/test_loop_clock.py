"""However messages in a mailbox are made, looking at them holds nobody else up.
Standard: no callback of the loop takes 50 ms of processor time, three times in a row; the server is one of our own.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from relay.kme import DevelopmentKMEs
from tests.integration.entry.imap.conftest import bob_site, imap_table
from tests.testlib import mails
from tests.testlib.imap_double import IMAPDouble
from tests.testlib.loop_clock import loop_clock, slow
from tests.testlib.sites import serving

MESSAGES = 400
MARK = b"X-QuMail-Protection: otp; peer=alice; sealed=" + b"0" * 32 + b"; site=" + b"0" * 32 + b"\r\n"
HEADERS = {
    "types": b"Content-Type: application/pkcs7-mime;a;b;c;d;e;f;g;h\r\n" * 140,
    "a long type": b"Content-Type: application/pkcs7-mime" + b';a="' * 19 + b"x" * 7500 + b"\r\n",
    "names": b"Message-ID: x\r\n" * 500,
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
async def test_a_mailbox_full_of_hostile_messages_holds_nobody_up(
    header: bytes, tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    """The last message has a mark that somebody else wrote: when its copy is there, all were looked at."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with IMAPDouble(authority) as provider:
        bob = bob_site(
            tmp_path / "bob", kmes, imap_table(provider.address, tmp_path / "ca.pem", "idle = false\npoll = 0.05")
        )
        async with serving(bob):
            await provider.until_told("UID SEARCH UID", 2)
            copies = 0

            async def looked_at() -> None:
                nonlocal copies
                for _ in range(MESSAGES):
                    provider.put(header + mails.plain())
                copies += 1
                provider.put(MARK + mails.plain(subject=f"round {copies}"))
                await provider.until(lambda: sum(b"copy-of=" in each for each in provider.messages()) == copies)

            with loop_clock() as clock:
                one = await slow(clock, "mailbox", looked_at, 5.0)
    assert one is None, str(one)
