"""One mail that a mail server shows to the milter, as `test_every_listener.py` asks for it.
Standard: milter protocol 6.
"""

from __future__ import annotations

import miltertest

from relay.config import TCPAddress
from tests.integration.entry.milter.mta import MTA, in_thread


async def bring(setting: str, address: TCPAddress, message: bytes, sender: str, recipients: list[str]) -> list[bool]:
    """Hands the mail over; whether the mail server hears that it was taken, for each recipient."""
    header, _, body = message.decode().partition("\r\n\r\n")
    fields = [(name, value) for name, _, value in (line.partition(":") for line in header.split("\r\n"))]

    def whole() -> str:
        mta = MTA(address)
        try:
            mta.negotiate()
            return mta.mail(fields, body, sender=f"<{sender}>", recipients=[f"<{each}>" for each in recipients]).word
        finally:
            mta.close()

    return [await in_thread(whole) == miltertest.SMFIR_ACCEPT] * len(recipients)
