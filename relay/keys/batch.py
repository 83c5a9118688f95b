"""How many keys one request may ask for, where a KME does not say it: found out by its refusals, and tried again.
Standard: ETSI GS QKD 014 V1.1.1, 6.1 (max_key_per_request, which real KMEs leave out or give as 0); pure.

A refusal may have had another reason than a limit, so what was found is doubled again once it has stood for a while: a
wrong guess costs a site its rate for some minutes, and a right one costs a refusal a minute, which burns no key.
"""

from __future__ import annotations

from collections.abc import Callable

BELIEVED_FOR_S = 60.0
"""A limit that was found out is not doubted for this long."""

USUAL_BATCH = 128
"""So many keys are asked for at once where nothing is known."""


class BatchLimit:
    """The limit of one KME and slave SAE; `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._found: int | None = None
        self._believed_until = 0.0

    def most(self, said: int | None) -> int:
        """How many keys a request may ask for now; `said` is what the KME's status says of that."""
        found = self._found
        if found is not None and self._clock() >= self._believed_until:
            found *= 2
        return min((limit for limit in (said, found) if limit), default=USUAL_BATCH)

    def took(self, number: int, *, refused_more: bool) -> None:
        """The KME gave keys for a request of `number`; `refused_more`: after refusing a larger one for its size."""
        if refused_more:
            self._found, self._believed_until = number, self._clock() + BELIEVED_FOR_S
        elif self._found is not None and number > self._found:
            self._found = number
