"""One mail that a mail server shows to the milter, as `test_every_listener.py` asks for it.
Standard: milter protocol 6.
"""

from __future__ import annotations

import miltertest

from relay.config import TCPAddress
from tests.integration.entry.milter.mta import MTA, in_thread


async def bring(setting: str, address: TCPAddress, message: bytes, sender: str, recipient: str) -> None:
    """Hands the mail over and reads the answer."""
    header, _, body = message.decode().partition("\r\n\r\n")
    fields = [(name, value) for name, _, value in (line.partition(":") for line in header.split("\r\n"))]

    def whole() -> str:
        mta = MTA(address)
        try:
            mta.negotiate()
            return mta.mail(fields, body, sender=f"<{sender}>", recipients=[f"<{recipient}>"]).word
        finally:
            mta.close()

    assert await in_thread(whole) == miltertest.SMFIR_ACCEPT
