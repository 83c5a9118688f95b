"""Policies are edited while real Postfix sends hundreds of mails through the relay: each by one version, none lost.
One edit follows when the relay has taken the one before, or said why not; what the log says of a mail is what
happened to it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from relay.kme import DevelopmentKMEs
from relay.policy.load import load_policies
from tests.testlib import mails
from tests.testlib.long import sized
from tests.testlib.mail_site import mail_site
from tests.testlib.policy_files import write
from tests.testlib.ports import free_addresses
from tests.testlib.postfix import requires_postfix
from tests.testlib.sink import Sink
from tests.testlib.wire import Wire

pytestmark = requires_postfix

MAILS = sized(160, 1000)
SENDERS = 10
EDITS = 12
"""Number of edits before the last mails are sent."""
LEVELS = ("aes", "plaintext", None)
"""What the edits say in turn; None is a broken one."""


class Editor:
    """Edits the policies until it is stopped, and knows which level each version says."""

    def __init__(self, policies: Path, beside: Path, log_size: Callable[[], int]) -> None:
        self.policies, self.beside, self.log_size = policies, beside, log_size
        self.settled: list[asyncio.Event] = []
        self.versions: dict[str, str] = {}
        self.stop = asyncio.Event()

    def text(self, number: int) -> str:
        """The policy of an edit, whose level is noted down by its version."""
        level = LEVELS[number % 3]
        if level is None:
            return f"levels = [\n# {number}\n"
        text = f'levels = ["{level}"]\n# {number}\n'
        set_of_it = load_policies(write(self.beside / str(number), {"bob.example.toml": text}), {})
        self.versions[set_of_it.version] = level
        return text

    async def run(self, settled: Callable[[int], Awaitable[None]]) -> None:
        """`settled` waits until the relay has taken an edit, or refused it, and gets how long its log was before."""
        while not self.stop.is_set():
            self.settled.append(asyncio.Event())
            logged = self.log_size()
            write(self.policies, {".new": self.text(len(self.settled))})
            (self.policies / ".new").replace(self.policies / "bob.example.toml")
            await settled(logged)
            self.settled[-1].set()

    async def reached(self, number: int) -> None:
        """Waits until so many edits are settled."""
        while sum(each.is_set() for each in self.settled) < number:
            await asyncio.sleep(0.02)


def events(log: str) -> set[str]:
    """Those of the whole lines of a log."""
    return {
        json.loads(line)["event"] for line in log.splitlines(keepends=True) if line[:1] == "{" and line[-1:] == "\n"
    }


async def test_many_mails_through_postfix_while_policies_are_edited(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    (smtp,) = free_addresses(1)
    async with Wire(smtp) as inbound, Wire(sink.address) as to_bob:
        site = mail_site(
            tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], smtp=smtp, inbound=inbound,
            peer_inbound=to_bob, policies={"bob.example.toml": 'levels = ["aes"]\n# 0\n'},
        )  # fmt: skip
        async with site as alice:
            editor = Editor(alice.site.directory / "policies", tmp_path / "beside", lambda: len(alice.relay.log))
            editor.text(0)

            async def settled(logged: int) -> None:
                async with asyncio.timeout(30):
                    while not {"policies_loaded", "policies_not_reloaded"} & events(alice.relay.log[logged:]):
                        await asyncio.sleep(0.02)

            editing = asyncio.create_task(editor.run(settled))

            async def send(numbers: range) -> None:
                for sent, number in enumerate(numbers):
                    await editor.reached(sent * EDITS * SENDERS // MAILS)
                    message = mails.plain(body=f"number {number}.\r\n")
                    reply = await alice.postfix.submit(message, recipients=[f"u{number}@bob.example"])
                    assert reply.code == 250, reply

            await asyncio.gather(*(send(range(first, MAILS, SENDERS)) for first in range(SENDERS)))
            await sink.messages(MAILS)
            editor.stop.set()
            await editing
            log = [json.loads(line) for line in alice.relay.log.splitlines() if line.startswith("{")]
    assert sorted(got.recipients for got in sink.got) == sorted((f"u{number}@bob.example",) for number in range(MAILS))
    sent = [entry for entry in log if entry["event"] in ("sealed_and_sent", "sent_in_clear")]
    assert len(sent) == MAILS
    assert all(entry["protection"] == editor.versions[entry["policy_version"]] for entry in sent)
    in_clear = sum(b"number " in got.message for got in sink.got)
    assert in_clear == sum(entry["event"] == "sent_in_clear" for entry in sent)
    assert len({entry["policy_version"] for entry in sent}) > 5
    assert any(entry["event"] == "policies_not_reloaded" for entry in log)
