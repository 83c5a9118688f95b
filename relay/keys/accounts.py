"""What is counted: the fate of every key of one KME, here and on the board of the relay.
Standard: double entry, `issued = used + burnt + expired + in pool` for each slave SAE and in all. Labels carry names,
never key_IDs.
"""

from __future__ import annotations

from collections import Counter

from relay.counting import key_metrics as metrics
from relay.keys.counts import KeyCounts, Numbers


class Accounts:
    """Counts of keys (not bytes), by slave SAE; the pool counts its own keys, so the two can be compared."""

    def __init__(self, kme: str = "", board: KeyCounts | None = None) -> None:
        """What is entered here is counted on the `board`, too, under the KME's name."""
        self._kme = kme
        self._board = board or Numbers()
        self.peers: dict[str, str] = {}
        """The names under which slave SAEs are counted there, by SAE ID; those of others are their IDs."""
        self._issued: Counter[str] = Counter()
        self._used: Counter[str] = Counter()
        self._expired: Counter[str] = Counter()
        self._burnt: Counter[tuple[str, str]] = Counter()

    def issued(self, slave_sae: str, number: int) -> None:
        """The KME gave keys, and they are in the pool now."""
        self._enter(self._issued, slave_sae, number, "issued")

    def used(self, slave_sae: str, number: int) -> None:
        """Keys left the pool to seal a message."""
        self._used[slave_sae] += number
        self._board.add(metrics.KEYS, self._kme, self.peers.get(slave_sae, slave_sae), "used", by=number)

    def expired(self, slave_sae: str, number: int) -> None:
        """Keys in the pool became too old and were destroyed."""
        self._enter(self._expired, slave_sae, number, "expired")

    def burnt(self, slave_sae: str, number: int, cause: str) -> None:
        """Keys in the pool were destroyed for another reason; `cause` is a short fixed text."""
        self._burnt[slave_sae, cause] += number
        self._board.add(metrics.KEYS, self._kme, self._peer(slave_sae), "burnt", by=number)
        self._board.add(metrics.KEYS_BURNT, self._kme, cause, by=number)

    def issued_and_burnt(self, slave_sae: str, number: int, cause: str) -> None:
        """The KME gave keys, or has to be assumed to have, that never came into the pool."""
        self.issued(slave_sae, number)
        self.burnt(slave_sae, number, cause)

    def discarded(self, octets: int) -> None:
        """A pad had no use for `octets` bytes at the end of its keys."""
        self._board.add(metrics.PAD_DISCARDED, self._kme, by=octets)

    def totals(self, slave_sae: str | None = None) -> dict[str, int]:
        """`issued`, `used`, `burnt`, `expired`, and `in_pool` as it has to be; of one slave SAE or of all."""

        def total(counts: Counter[str]) -> int:
            return counts.total() if slave_sae is None else counts[slave_sae]

        burnt = sum(number for (slave, _), number in self._burnt.items() if slave_sae in (None, slave))
        counts = {
            "issued": total(self._issued),
            "used": total(self._used),
            "burnt": burnt,
            "expired": total(self._expired),
        }
        return counts | {"in_pool": counts["issued"] - counts["used"] - burnt - counts["expired"]}

    def burnt_by_cause(self, slave_sae: str | None = None) -> dict[str, int]:
        """Burnt keys by cause."""
        causes: Counter[str] = Counter()
        for (slave, cause), number in self._burnt.items():
            if slave_sae in (None, slave):
                causes[cause] += number
        return dict(causes)

    def _enter(self, counts: Counter[str], slave_sae: str, number: int, fate: str) -> None:
        counts[slave_sae] += number
        self._board.add(metrics.KEYS, self._kme, self._peer(slave_sae), fate, by=number)

    def _peer(self, slave_sae: str) -> str:
        return self.peers.get(slave_sae, slave_sae)
