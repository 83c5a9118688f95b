"""Notes of which received keys are being asked for: what nobody answered when all processes were killed was spent.
Standard: ETSI GS QKD 014 V1.1.1, 5.4: a key whose answer nobody has read does not come again.

Such a note stands in the spool before a KME is asked (receiver.py), beside the replies. It is a JSON object, which no
reply's record begins with.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

GONE_ON = b'{"gone_on": true}'
"""The last record of a file whose process goes on, or ended as it should: it knows itself what is under way."""


@dataclass(frozen=True, slots=True)
class KeyCall:
    """One call for keys: the KME group, the master SAE, and the key_IDs."""

    group: str
    master_sae: str
    key_IDs: tuple[str, ...]

    def asked(self) -> bytes:
        """The record that it is about to be made."""
        return self._encoded("asked")

    def over(self) -> bytes:
        """The record that it has cost no key."""
        return self._encoded("over")

    def _encoded(self, kind: str) -> bytes:
        return json.dumps({kind: [self.group, self.master_sae, self.key_IDs]}).encode()


def is_note(record: bytes) -> bool:
    """Whether a record is a note, and no reply."""
    return record.startswith(b"{")


def unanswered(notes: Iterable[bytes], answered: Iterable[KeyCall]) -> Sequence[KeyCall]:
    """The calls that were under way when a file's process was killed, by its notes and the calls with replies.

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
