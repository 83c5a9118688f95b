"""A second reader of sealed messages, written from relay/FORMAT.md alone, with other libraries than relay's.

Standard: relay/FORMAT.md. It shares no code with relay; where both agree on every message, the page says what the code does.
"""

from tests.reader.memory import Binding, Memory, OneKey, Seen
from tests.reader.model import (
    Certificate,
    Delivered,
    Held,
    Outcome,
    PassedOn,
    Peer,
    PrivateKey,
    Refused,
    Site,
)
from tests.reader.receiver import receive
from tests.reader.signed import certificate

__all__ = [
    "Binding",
    "Certificate",
    "Delivered",
    "Held",
    "Memory",
    "OneKey",
    "Outcome",
    "PassedOn",
    "Peer",
    "PrivateKey",
    "Refused",
    "Seen",
    "Site",
    "certificate",
    "receive",
]
