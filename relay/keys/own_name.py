"""Whether a KME knows this relay by the SAE ID that goes into sealed mail: what is sealed under another's keys is lost.
Standard: ETSI GS QKD 014 V1.1.1, 6.1 (master_SAE_ID is the SAE that asks); KMEs leave it out, or spell it otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relay.keys.replies import KeyStatus


@dataclass(frozen=True, slots=True)
class AnotherName:
    """A KME's status names another SAE than us as the one that asks.

    `certain` where it names the peer just as we do: it speaks of SAEs as we do, and takes us for another one.
    """

    named: str
    ours: str
    certain: bool

    def __str__(self) -> str:
        problem = f"the KME knows this relay as SAE {self.named!r}, and [site] sae_id says {self.ours!r}: "
        if self.certain:
            problem += (
                "no peer could open what is sealed under its keys, and none is drawn; correct sae_id, or the "
                "certificate for this KME"
            )
        else:
            problem += "correct sae_id, or tell that this is only its spelling (calls_us of the KME)"
        return problem


def another_name(status: KeyStatus, ours: Sequence[str], slave_sae: str) -> AnotherName | None:
    """By what other name the KME knows us than one of `ours` (our SAE ID first); None where it does not, or says none.

    `slave_sae` is the peer's ID, by which the status was asked for. Where our own ID stands as that of the slave the
    KME has exchanged the two, and knows us.
    """
    known = {_folded(name) for name in ours if name}
    named = status.master_SAE_ID.strip()
    if not known or not named or known & {_folded(named), _folded(status.slave_SAE_ID)}:
        return None
    return AnotherName(named, ours[0], certain=_folded(status.slave_SAE_ID) == _folded(slave_sae))


def _folded(name: str) -> str:
    return name.strip().casefold()
