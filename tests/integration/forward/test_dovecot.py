"""A real Dovecot as the next hop, by LMTP.
Standard: what stands in the mailbox afterwards is the second opinion on what we have said.
"""

from __future__ import annotations

from relay.errors import NextHopRefused
from tests.integration.forward.conftest import Build
from tests.integration.forward.mails import BEA, BEN, TEXT, mail
from tests.testlib.dovecot import dovecot, requires_dovecot

pytestmark = requires_dovecot


async def test_each_recipient_has_an_outcome_of_their_own_over_verified_tls(build: Build) -> None:
    async with dovecot(users=(BEN, BEA)) as server:
        next_hop = build(f"lmtp://{server.lmtp}", next_hop_tls="required", next_hop_ca=server.ca)
        ben, nobody, bea = (await next_hop.deliver(mail(BEN, "nobody@bob.example", BEA))).outcomes
        assert (ben, bea) == (None, None)
        assert isinstance(nobody, NextHopRefused)
        assert nobody.status == "5.1.1"
        assert (await next_hop.deliver(mail(BEN, sender=""))).outcomes == (None,)
        await next_hop.close()
        assert [len(server.messages(user=user)) for user in (BEN, BEA)] == [2, 1]
        assert all(message.endswith(TEXT) for message in server.messages(user=BEN))
