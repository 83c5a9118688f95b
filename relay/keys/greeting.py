"""Connection test of a KME before its keys are used: does it answer and authorise us, and as which SAE?
Standard: ETSI GS QKD 014 V1.1.1, 5.2 (status) and 5.4 (a nonexistent ID): neither costs a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import uuid4

from relay.errors import KeyNotFound, KeyUnavailable, RelayError
from relay.keys.client import KMEClient
from relay.keys.faults import KMERefusedRequest, KMEUnanswered
from relay.keys.kme_store import AnotherName, another_name

_SIMULATOR_WORDS = (
    "The given master_sae_id is not involved in any key exchanges",
    "Some of the requested keys do not exist in this KME",
)
_SIMULATOR = (
    "CreepPork's next-door-key-simulator: both KMEs of a pair hang for good when each asks the other at the same "
    "moment. Mail is held until both are started again, and keys that were not fetched are gone then, with mail under "
    "them. Put a proxy with a time limit between the two (KEYS.md), then set one_batch_at_a_time = true for this KME"
)


@dataclass(frozen=True, slots=True)
class Greeting:
    """`trouble`: why the KME cannot be used, or ""; `another`: the SAE it takes us for, if not ourselves."""

    trouble: str = ""
    another: AnotherName | None = None


async def greet(client: KMEClient, ours: Sequence[str], peer_sae: str | None) -> Greeting:
    """Requests the status for the peer; without one (None) for ourselves, which a KME may refuse.

    A request for a nonexistent key then shows whether the refusal is about us. `ours` as for `another_name`. It makes
    one attempt of each; does not raise for failures of the KME.
    """
    sae = ours[0] if peer_sae is None else peer_sae
    try:
        status = await client.check_key_status(sae, patient=False)
    except KeyUnavailable as error:
        if peer_sae is not None or not error.http_status:
            return Greeting(trouble=text_of(error))
        return Greeting(trouble=await _refused(client, sae, error))
    another = another_name(status, ours, sae)
    return Greeting(trouble=str(another or ""), another=another)


async def _refused(client: KMEClient, sae: str, status: KeyUnavailable) -> str:
    """Why the KME does not authorise us, "" if it does although it refused the status."""
    try:
        await client.request_dec_keys(sae, [str(uuid4())], patient=False)
    except (KMERefusedRequest, KeyNotFound):
        return ""
    except KeyUnavailable as error:
        answer = text_of(error)
    return f"refuses this relay: {text_of(status)}; {answer}; does its operator know our certificate, as SAE {sae!r}?"


def text_of(error: RelayError) -> str:
    """The error in words; of a KME that answers nothing, which KME is known for that."""
    hangs = isinstance(error, KMEUnanswered) and not error.http_status
    return f"{type(error).__name__}: {error}" + (f". That is known of {_SIMULATOR}" if hangs else "")


async def trouble_with_unknown(
    client: KMEClient, master_sae: str, *, ours: bool = False, pause: float | None = None
) -> str:
    """What is wrong by the answer to a request for a key that does not exist; "" if it says that it is not there.

    `ours`: the SAE is our own, which a KME may refuse there. `pause` is the setting one_batch_at_a_time.
    """
    try:
        await client.request_dec_keys(master_sae, [str(uuid4())], patient=False)
    except KeyNotFound as error:
        known = not pause and any(words in str(error) for words in _SIMULATOR_WORDS)
        return f"it answers as does {_SIMULATOR}" if known else ""
    except KeyUnavailable as error:
        if ours and error.http_status:
            return ""
        return f"{text_of(error)} (the answer to a call for a key that does not exist)"
    return ""
