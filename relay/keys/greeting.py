"""The first words with a KME, before its keys are of any use: is it there, does it let us in, whom does it take us for?
Standard: ETSI GS QKD 014 V1.1.1, 5.2 (status), which costs no key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relay.errors import KeyUnavailable
from relay.keys.client import KMEClient
from relay.keys.http import NoAnswer
from relay.keys.own_name import AnotherName, another_name


@dataclass(frozen=True, slots=True)
class Greeting:
    """`trouble`: it cannot be used so, or ""; `answer`: what it said where that proves nothing, or ""."""

    trouble: str = ""
    answer: str = ""
    another: AnotherName | None = None


async def greet(client: KMEClient, ours: Sequence[str], peer_sae: str | None) -> Greeting:
    """Asks for the status of the peer; without one (None) of ourselves, which a KME need not answer but by some no.

    `ours` as for `another_name`. One attempt is made; raises nothing of what the KME does.
    """
    sae = ours[0] if peer_sae is None else peer_sae
    try:
        status = await client.check_key_status(sae, patient=False)
    except KeyUnavailable as error:
        told = f"{type(error).__name__}: {error}"
        if peer_sae is None and not isinstance(error.__cause__, NoAnswer):
            return Greeting(answer=told)
        return Greeting(trouble=told)
    another = another_name(status, ours, sae)
    return Greeting(trouble=str(another or ""), another=another)
