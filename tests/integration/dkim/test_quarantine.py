"""Mail that was put aside and is let out by a person: it is verified then, and believed no more than other mail.
Standard: RFC 8601 5; what a release hands on has results of ours alone under our name.
"""

from __future__ import annotations

from relay.dkim import Signer
from tests.integration.quarantine.conftest import Bob, Seal, bob as bob, seal as seal
from tests.testlib import mails
from tests.testlib.sink import Sink
from tests.testlib.submit import submit
from tests.testlib.zone import Zone
from tests.unit.dkim.conftest import Keys

FORGED = b"Authentication-Results: relay.bob.example; spf=pass\r\n"


async def test_what_is_released_is_verified_and_forged_results_are_removed(
    bob: Bob, seal: Seal, sink: Sink, zone: Zone, keys: Keys
) -> None:
    bob.configure(lambda text: f'{text}\n[dkim]\ndns_servers = ["{zone.address}"]\n')
    sealed = await seal(FORGED + mails.plain())
    signed = Signer([keys.rsa]).fields(sealed) + sealed
    bob.configure(lambda text: text.replace('sae_id = "2"', 'sae_id = "5"'))
    async with bob.running() as relay:
        assert (await submit(relay, FORGED + signed)).code == 250
    [entry] = await bob.listed()
    status, err, _ = await bob.command("release", "--unopened", str(entry["id"]))
    assert (status, err) == (0, "")
    assert sink.got[-1].message.endswith(b"\r\n" + signed)
    assert b"spf=pass" not in sink.got[-1].message

    async with bob.running() as relay:
        assert (await submit(relay, FORGED + signed)).code == 250
    bob.configure(lambda text: text.replace('sae_id = "5"', 'sae_id = "2"'))
    [entry] = await bob.listed()
    status, err, _ = await bob.command("release", str(entry["id"]))
    assert (status, err) == (0, "")
    assert mails.unproven(sink.got[-1].message).endswith(b"peer=alice; author=peer\r\n" + mails.plain())
    assert b"dkim=pass header.d=alice.example" in sink.got[-1].message
