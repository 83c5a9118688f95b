"""Policy files edited, broken and missing while mail flows through several workers, some of them killed:
`python -m tests.system.policy_live [SECONDS] [--workers N] [--seed SEED]`, outside the suite. No mail may leave by
another level than the version of the policies that its log line names, and none to the peer in clear.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from relay.kme import DevelopmentKMEs, LinkSettings
from relay.policy.load import load_policies
from tests.testlib import mails, sites
from tests.testlib.identities import make_identities
from tests.testlib.policy_files import PEERS, write
from tests.testlib.relay_command import workers_of
from tests.testlib.sink import Sink
from tests.testlib.sites import RelayProcess, Site, make_site, relay_process
from tests.testlib.submit import submit

LISTS = ('["otp", "aes"]', '["otp"]', '["aes"]', '["aes", "pqc+aes"]', '["pqc+aes"]', '["pqc"]')
FIRST = ("otp", "otp", "aes", "aes", "pqc+aes", "pqc")
"""What each list has mail sealed by, since there are keys."""
CLEAR = 'levels = ["plaintext"]\nreason = "for the test"\n'
BROKEN = (
    {"bob.example.toml": f"{CLEAR}levels ="},
    {"bob.example.toml": CLEAR, "floors.toml": "[[floor]]\nlevels = ["},
    {"bob.example.toml": CLEAR, "tests.toml": '[[test]]\nsender = "a@b.example"\nrecipient = "x@bob.example"\nexpect = "otp"\n'},
)  # fmt: skip


class Live:
    """One relay, its edits, and what was seen."""

    def __init__(self, site: Site, made: random.Random, top: Path) -> None:
        self.site, self.made, self.top = site, made, top
        self.directory = site.directory / "policies"
        self.versions: dict[str, str] = {}
        self.counted: Counter[str] = Counter()
        self.replies: Counter[int] = Counter()

    def edit(self, number: int) -> None:
        """A valid set, a broken one that would let all out in clear, or a file that is gone for a moment."""
        chance = self.made.random()
        if number and chance < 0.3:
            self.counted["broken"] += 1
            write(self.directory, self.made.choice(BROKEN))
            return
        if number and chance < 0.4:
            self.counted["gone for a moment"] += 1
            (self.directory / "bob.example.toml").unlink(missing_ok=True)
            return
        self.counted["valid"] += 1
        place = self.made.randrange(len(LISTS))
        files = {"default.toml": CLEAR, "bob.example.toml": f"levels = {LISTS[place]}\n# {number}\n"}
        copy = write(self.top / "copies" / str(number), files)
        self.versions[load_policies(copy, PEERS).version] = FIRST[place]
        for name in ("floors.toml", "tests.toml"):
            (self.directory / name).unlink(missing_ok=True)
        write(self.directory, files)

    async def send(self, relay: RelayProcess, until: float) -> None:
        """Mail after mail to the peer, each another one."""
        while time.monotonic() < until:
            number = sum(self.replies.values()) + self.made.randrange(10**9)
            message = mails.plain(body=f"number {number}\r\n").replace(b"<1@", b"<%d@" % number)
            try:
                self.replies[
                    (await submit(relay.addresses["outgoing"], message, recipients=["x@bob.example"])).code
                ] += 1
            except (OSError, EOFError, TimeoutError):
                self.replies[0] += 1

    def weaker(self) -> list[str]:
        """The mails that left otherwise than the version says which their line names."""
        found = []
        for line in (self.site.directory / "relay.log").read_text().splitlines():
            with suppress(ValueError):
                entry = json.loads(line)
                if entry.get("event") in ("sealed_and_sent", "sent_in_clear"):
                    self.counted["left"] += 1
                    said = self.versions.get(entry["policy_version"], "a version that never was")
                    if entry.get("protection", "plaintext") != said:
                        found.append(f"{said}: {line}")
        return found


async def main(seconds: float, workers: int, seed: int) -> int:
    """Runs it all; the number of mails that left weaker."""
    sites.WORKERS, made = workers, random.Random(seed)
    async with AsyncExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        link = LinkSettings(key_rate=100_000_000)
        kmes = await stack.enter_async_context(
            DevelopmentKMEs(state_dir=top / "kme", host="127.0.0.1", ports=(0, 0), link=link)
        )
        sink = await stack.enter_async_context(Sink())
        site = make_site(
            top / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
            identities=make_identities(top / "identities"), policies={},
        )  # fmt: skip
        live = Live(site, made, top)
        live.edit(0)
        until, number = time.monotonic() + seconds, 0
        while time.monotonic() < until:
            async with relay_process(site) as relay:
                live.counted["starts"] += 1
                ends = min(until, time.monotonic() + made.uniform(8, 16))
                sending = [asyncio.create_task(live.send(relay, ends)) for _ in range(6)]
                while time.monotonic() < ends:
                    number += 1
                    live.edit(number)
                    await asyncio.sleep(made.uniform(0.05, 1.2))
                    if made.random() < 0.1 and (pids := workers_of(relay.process.pid)):
                        live.counted["workers killed"] += 1
                        with suppress(ProcessLookupError):
                            os.kill(made.choice(pids), signal.SIGKILL)
                await asyncio.gather(*sending)
                relay.kill()
        weaker = live.weaker()
        weaker += [f"in clear: {each.recipients}" for each in sink.got if b"number " in each.message]
    said = ", ".join(f"{count} {what}" for what, count in live.counted.items())
    sys.stdout.write(
        f"seed {seed}: {len(sink.got)} mails arrived; {said}; replies {dict(live.replies)}; {len(weaker)} weaker\n"
    )
    sys.stdout.writelines(f"{each}\n" for each in weaker[:10])
    return len(weaker)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float, nargs="?", default=120)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    chosen = parser.parse_args()
    sys.exit(bool(asyncio.run(main(chosen.seconds, chosen.workers, chosen.seed))))
