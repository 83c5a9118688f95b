"""Notes of requests for received keys in flight: one whose process was killed before the reply spent its keys.
Standard: ETSI GS QKD 014 V1.1.1, 5.4: a key whose reply was not read is lost.

Such a note is written to the spool before the request (receiver.py), beside the replies. It is a JSON object; records
of replies never begin with one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

GONE_ON = b'{"gone_on": true}'
"""The last record of a file whose process continues or ended normally: it tracks its calls itself."""


@dataclass(frozen=True, slots=True)
class KeyCall:
    """One call for keys: the KME group, the master SAE, and the key_IDs."""

    group: str
    master_sae: str
    key_IDs: tuple[str, ...]

    def asked(self) -> bytes:
        """The record before the call."""
        return self._encoded("asked")

    def over(self) -> bytes:
        """The record that the call has spent no key."""
        return self._encoded("over")

    def _encoded(self, kind: str) -> bytes:
        return json.dumps({kind: [self.group, self.master_sae, self.key_IDs]}).encode()


def is_note(record: bytes) -> bool:
    """Whether a record is a note rather than a reply."""
    return record.startswith(b"{")


def unanswered(notes: Iterable[bytes], answered: Iterable[KeyCall]) -> Sequence[KeyCall]:
    """The calls in flight when a file's process was killed, from its notes and the calls with replies.

    Raises ValueError for notes of a newer relay.
    """
    calls: Counter[KeyCall] = Counter()
    for note in notes:
        if note == GONE_ON:
            return ()
        [(kind, (group, master_sae, key_IDs))] = json.loads(note).items()
        if kind not in ("asked", "over"):
            raise ValueError(f"a note of the kind {kind!r}")
        calls[KeyCall(group, master_sae, tuple(key_IDs))] += 1 if kind == "asked" else -1
    calls.subtract(answered)
    return [call for call, number in calls.items() if number > 0]
