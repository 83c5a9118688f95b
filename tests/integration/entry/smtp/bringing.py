"""One mail that comes in by SMTP or LMTP, as `test_every_listener.py` asks for it.
Standard: RFC 5321 and RFC 2033.
"""

from __future__ import annotations

from relay.config import TCPAddress
from tests.testlib.submit import submit, submit_lmtp


async def bring(setting: str, address: TCPAddress, message: bytes, sender: str, recipients: list[str]) -> list[bool]:
    """Hands the mail over; whether the client hears that it was taken, for each recipient."""
    if setting.endswith(".lmtp"):
        replies = await submit_lmtp(address, message, sender=sender, recipients=recipients)
        return [reply.code == 250 for reply in replies]
    reply = await submit(address, message, sender=sender, recipients=recipients)
    return [reply.code == 250] * len(recipients)
