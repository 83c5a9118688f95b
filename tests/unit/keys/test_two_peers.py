"""A second peer whose SAE the KME does not know: the first one's mail has its keys at once, from the start on.
Standard: ETSI GS QKD 014 V1.1.1, 5.2 and 5.3: a call is for one slave SAE.
"""

from __future__ import annotations

import pytest

from relay.errors import KeyUnavailable
from relay.keys.group import KMEGroup, Prefetch
from relay.keys.ring import KeyRing, PeerKeys
from relay.kme import KMERequest, Misbehaviour
from tests.testlib.fake_kme import Certificates, FakeKME, FakeTime
from tests.testlib.pools import settled


class KnowsBobAlone(FakeKME):
    """It refuses all that is about another SAE, as next-door-key-simulator does."""

    def __init__(self, certificates: Certificates, code: int) -> None:
        self.code = code
        super().__init__(certificates, decide=self._refusal)

    def _refusal(self, request: KMERequest) -> Misbehaviour | None:
        if request.other == "bob":
            return None
        body = '{"message": "The given slave SAE ID is unknown by this KME."}'
        return Misbehaviour("http", code=self.code, body=body)


@pytest.mark.parametrize("code", [400, 401, 403, 404])
async def test_a_peer_that_the_kme_does_not_know_makes_no_other_peers_mail_wait(
    certificates: Certificates, time: FakeTime, code: int
) -> None:
    async with KnowsBobAlone(certificates, code) as kme:
        group = KMEGroup("g", [kme.client(timing=time.timing)], Prefetch(4, 16, 100), timing=time.timing)
        ring = KeyRing(
            "alice",
            {"g": group},
            {"carol": PeerKeys("carol", ("g",)), "bob": PeerKeys("bob", ("g",))},
            timing=time.timing,
        )
        for peer in ("carol", "carol", "bob"):
            group.warm(peer)
            await settled(group)
        began = time.now
        for _ in range(3):
            with pytest.raises(KeyUnavailable):
                await ring.take("carol")
            for _ in range(3):
                await ring.take("bob")
        assert time.now == began
        await ring.close()
