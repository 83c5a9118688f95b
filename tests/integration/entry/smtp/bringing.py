"""One mail that comes in by SMTP or LMTP, as `test_every_listener.py` asks for it.
Standard: RFC 5321 and RFC 2033.
"""

from __future__ import annotations

from relay.config import TCPAddress
from tests.testlib.submit import submit, submit_lmtp


async def bring(setting: str, address: TCPAddress, message: bytes, sender: str, recipient: str) -> None:
    """Hands the mail over and reads the answer."""
    if setting.endswith(".lmtp"):
        [reply] = await submit_lmtp(address, message, sender=sender, recipients=[recipient])
    else:
        reply = await submit(address, message, sender=sender, recipients=[recipient])
    assert reply.code == 250
