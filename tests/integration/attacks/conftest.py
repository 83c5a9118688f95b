"""The scene of the attacks: Alice's relay, the wire in the attacker's hand, two relays of Bob's on one store.
Standard: everything that Bob's relays hand on is in `scene.delivered`; over SQLite there is one relay of Bob's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from relay.config import TCPAddress
from relay.formats import mime
from relay.formats.pieces import Pieces
from relay.kme import DevelopmentKMEs
from relay.process import assembly
from tests.testlib import mails
from tests.testlib.databases import Backend
from tests.testlib.identities import Identities
from tests.testlib.sink import Got, Sink
from tests.testlib.sites import Site, make_site, serving
from tests.testlib.submit import SMTPReply, submit

LEVELS = ("otp", "aes", "pqc", "rsa", "pqc+aes")
POLICIES = {
    "default.toml": 'levels = ["plaintext"]\n',
    "bob.example.toml": 'levels = ["aes"]\n',
    **{f"bob.example/{level}.toml": f'levels = ["{level}"]\n' for level in LEVELS[:4]},
    "bob.example/both.toml": 'levels = ["pqc+aes"]\n',
}


@dataclass
class Scene:
    """What stands on it, and what may be asked of it. `payloads` is what Alice's relay has sealed, in order."""

    alice: Site
    bob: Site
    outgoing: TCPAddress
    incoming: tuple[TCPAddress, ...]
    wire: Sink
    sink: Sink
    payloads: list[bytes] = field(default_factory=list)

    async def captured(self, level: str, message: bytes | None = None, *, to: str | None = None) -> bytes:
        """A sealed message that Alice's relay sends to Bob's; the wire shows it, and nobody has it yet."""
        mailbox = to or f"{'both' if level == 'pqc+aes' else level}@bob.example"
        reply = await submit(self.outgoing, message or mails.plain(), recipients=[mailbox])
        assert reply.code == 250
        return self.wire.got[-1].message

    async def sent(
        self,
        message: bytes,
        *,
        to: str,
        sender: str = "ann@alice.example",
        relay: int = 0,
        notify: str = "",
    ) -> SMTPReply:
        """What one of Bob's relays says to a message for one recipient, to a client that tries again as a mail queue does.

        A relay may still be writing down what it has answered when the same mail comes to the other one.
        """
        address = self.incoming[relay % len(self.incoming)]
        while True:
            reply = await submit(address, message, sender=sender, recipients=[to], parameters={to: notify})
            if not reply.text.endswith("being delivered already, try again later"):
                return reply

    @property
    def delivered(self) -> list[Got]:
        """What Bob's users got, marks and all."""
        return self.sink.got


@pytest.fixture
async def scene(
    tmp_path: Path,
    backend: Backend,
    kmes: DevelopmentKMEs,
    identities: Identities,
    wire: Sink,
    sink: Sink,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Scene]:
    """Both sites, running in this process."""
    payloads: list[bytes] = []
    wrap = mime.wrap_payload

    def remembered(message: bytes, envelope: bytes) -> Pieces:
        payload = wrap(message, envelope)
        payloads.append(bytes(payload))
        return payload

    monkeypatch.setattr(mime, "wrap_payload", remembered)
    alice = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address,
        policies=POLICIES, identities=identities, kme_settings='size_unit = "ignored"',
    )  # fmt: skip
    relays = 2 if backend.name == "postgresql" else 1
    bobs = [
        make_site(
            tmp_path / f"bob{number}", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=sink.address,
            identities=identities,
        )
        for number in range(relays)
    ]  # fmt: skip
    for each in bobs:
        text = each.config_file.read_text().replace('database = "relay.db"', f'database = "{backend.where}"')
        text = text.replace('secret = "site.secret"', f'secret = "{tmp_path}/bob.secret"')
        each.config_file.write_text(f'{text}\n[audit]\ndirectory = "audit"\n')  # each has a record of its own
    async with AsyncExitStack() as stack:
        incoming = [(await stack.enter_async_context(serving(each)))["incoming"] for each in bobs]
        outgoing = (await stack.enter_async_context(serving(alice)))["outgoing"]
        yield Scene(alice, bobs[0], outgoing, tuple(incoming), wire, sink, payloads)


async def quarantined(site: Site) -> list[str]:
    """The reason of each message that is put aside at a site, oldest first."""
    async with assembly.parts(site.config, prefetch=False) as parts:
        return [kept.reason for kept in await parts.store.quarantine.all()]
