"""Connection test of a KME before its keys are used: does it answer and authorise us, and as which SAE?
Standard: ETSI GS QKD 014 V1.1.1, 5.2 (status) and 5.4 (a nonexistent ID): neither costs a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import uuid4

from relay.errors import KeyNotFound, KeyUnavailable
from relay.keys.client import KMEClient
from relay.keys.faults import KMERefusedRequest
from relay.keys.kme_store import AnotherName, another_name


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
            return Greeting(trouble=_text(error))
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
        answer = _text(error)
    return f"refuses this relay: {_text(status)}; {answer}; does its operator know our certificate, as SAE {sae!r}?"


def _text(error: KeyUnavailable) -> str:
    return f"{type(error).__name__}: {error}"


async def refusal_of_unknown(client: KMEClient, peer_sae: str) -> str:
    """What the KME says to a request for a key of the peer that does not exist; "" if it says that it is not there."""
    try:
        await client.request_dec_keys(peer_sae, [str(uuid4())], patient=False)
    except KeyNotFound:
        return ""
    except KeyUnavailable as error:
        return (
            f"{_text(error)} (to a call for a key that does not exist, which says whether arriving mail gets its keys)"
        )
    return ""
