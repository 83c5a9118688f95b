"""Mail through two relays over KMEs that fail in episodes, for as long as one likes; each mail is tried until it is there.
Standard: RFC 5321 4.5.4.1 for the queues; a mail is lost only where the KME itself destroyed a key that it had issued.

`python -m tests.system.crash.soak --seconds 1800` is half an hour of it. Queues try sooner than mail servers do: what they wait
for is the relay.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiosmtplib
import click

from relay.config import TCPAddress
from relay.formats import mime
from relay.kme import DevelopmentKMEs, LinkSettings, SimulatedLink
from tests.system.crash.episodes import KINDS, Episode, Episodes
from tests.system.crash.outcome import tell_and_exit
from tests.system.crash.watch import key_ids
from tests.testlib import mails
from tests.testlib.sink import Sink
from tests.testlib.sites import RelayProcess, Site, make_site, relay_process
from tests.testlib.submit import submit

HELD_S = 60.0
"""No mail waits longer than this after the last fault that it has met."""
AT_ONCE = 20
"""Number of mails that a queue hands over at the same time, as Postfix does."""
LONGEST_PAUSE_S = 15.0
OLD_S, OLD_PAUSE_S = 120.0, 600.0
"""A mail that has waited so long is tried less often, as by Postfix; else those whose keys the KME has destroyed, which
nobody can ever open, would take up the queue's slots, and it would be these that the others wait for."""
PAD_SHARE = 0.15
WARM_EPISODES = 5
"""Memory is compared from then on."""
POLICIES = {"default.toml": 'levels = ["aes"]\n', "bob.example/otp.toml": 'levels = ["otp"]\n'}
USUAL = "retry_attempts = 1\nretry_delay = 0.05\n"


@dataclass(eq=False)
class Letter:
    """One mail and how far it has come; times are of time.monotonic, `answers` those of the relay it is at."""

    number: int
    recipient: str
    octets: bytes = field(repr=False)
    sent: float
    sealed: list[bytes] = field(default_factory=list, repr=False)
    sealed_at: float | None = None
    arrived: list[float] = field(default_factory=list)
    changed: bool = False
    taken_by_bob: bool = False
    key_IDs: frozenset[str] = frozenset()
    answers: Counter[str] = field(default_factory=Counter)

    def waited(self, episodes: Sequence[Episode], now: float) -> float:
        """Seconds from the end of the last fault that it has met (or from when it was sent) until it was there."""
        end = self.arrived[0] if self.arrived else now
        met = [episode.end for episode in episodes if episode.start < end and episode.end > self.sent]
        return max(0.0, end - max([self.sent, *met]))

    def story(self, episodes: Sequence[Episode]) -> str:
        """What can be told of it."""
        end = self.arrived[0] if self.arrived else float("inf")
        met = [
            f"{episode}, {episode.start - self.sent:+.0f} s"
            for episode in episodes
            if episode.start < end and episode.end > self.sent
        ]
        where = "sealed" if self.sealed_at is None else f"sealed after {self.sealed_at - self.sent:.1f} s"
        where += f", there after {self.arrived[0] - self.sent:.1f} s" if self.arrived else ", not there"
        return f"mail {self.number} to {self.recipient}: {where}; met {met}; answers {dict(self.answers)}"


@dataclass
class Report:
    """What a run has found; `faults` are broken promises, and there must be none. Times are in seconds."""

    seconds: float = 0.0
    sent: int = 0
    arrived: int = 0
    destroyed_by_kme: Counter[str] = field(default_factory=Counter)
    destroyed_are_told: Counter[str] = field(default_factory=Counter)
    waited_after_fault: dict[str, float] = field(default_factory=dict)
    tries: Counter[str] = field(default_factory=Counter)
    keys_issued: int = 0
    keys_used: int = 0
    episodes: list[str] = field(default_factory=list)
    one_by_one: Counter[str] = field(default_factory=Counter)
    memory_growth: dict[str, int] = field(default_factory=dict)
    log_events: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


class Queue:
    """Hands mails to one relay, each again and again until it is taken."""

    def __init__(self, name: str, tries: Counter[str], chance: random.Random, longest_pause: float) -> None:
        self._name = name
        self._tries = tries
        self._chance = chance
        self._longest_pause = longest_pause
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self.address: TCPAddress = TCPAddress("127.0.0.1", 0)
        self.over = False
        """Nothing is tried any more; a client that was cancelled does not always end by that alone."""

    async def until_taken(self, letter: Letter, message: bytes) -> bool:
        """Tries until the run is over."""
        pause, began = 1.0, time.monotonic()
        while not self.over:
            async with self._at_once:
                try:
                    reply = await submit(self.address, message, recipients=[letter.recipient])
                    answer = "250" if reply.code == 250 else str(reply)
                except (OSError, EOFError, aiosmtplib.SMTPException) as error:
                    answer = type(error).__name__
            self._tries[f"{self._name}: {answer}"] += 1
            letter.answers[f"{self._name}: {answer}"] += 1
            if answer.startswith("250"):
                return True
            longest = OLD_PAUSE_S if time.monotonic() - began > OLD_S else self._longest_pause
            await asyncio.sleep(min(longest, pause) * self._chance.uniform(0.75, 1.25))
            pause *= 2
        return False


class Listener(Sink):
    """A next hop that takes everything and gives it to `take` with the number of the mail."""

    def __init__(self, take: Callable[[int, bytes], None]) -> None:
        super().__init__()
        self._take = take

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        content = bytes(envelope.content)
        number = int(mime.header_of(content).partition(b"Message-ID: <")[2].partition(b"@")[0])
        self._take(number, content)
        return "250 taken"


@dataclass
class Soak:
    """One run: what flows, what fails, and what came of it."""

    episodes: Episodes
    link: SimulatedLink
    chance: random.Random
    report: Report
    progress: Callable[[str], None]
    longest_pause: float
    pads: float
    letters: list[Letter] = field(default_factory=list)
    under_way: set[asyncio.Future[object]] = field(default_factory=set)
    relays: dict[str, RelayProcess] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.to_alice, self.to_bob = (
            Queue(name, self.report.tries, self.chance, self.longest_pause) for name in ("alice", "bob")
        )

    def start(self, coroutine: Awaitable[object]) -> None:
        """Until it ends or the run does."""
        task = asyncio.ensure_future(coroutine)
        self.under_way.add(task)
        task.add_done_callback(self.under_way.discard)

    def sealed(self, number: int, content: bytes) -> None:
        """Alice's relay has handed on a sealed mail."""
        letter = self.letters[number]
        letter.sealed.append(mime.sealed_content(mails.untraced(content)) if mime.is_sealed(content) else b"")
        letter.sealed_at = letter.sealed_at or time.monotonic()
        letter.key_IDs |= key_ids(letter.sealed[-1]) if letter.sealed[-1] else frozenset()
        self.start(self._to_bob(letter, content))

    async def _to_bob(self, letter: Letter, content: bytes) -> None:
        letter.taken_by_bob = await self.to_bob.until_taken(letter, content)

    def opened(self, number: int, content: bytes) -> None:
        """Bob's relay has handed on the original, or what it takes for that."""
        letter = self.letters[number]
        letter.arrived.append(time.monotonic())
        body = letter.octets.partition(b"\r\n\r\n")[2]
        letter.changed = letter.changed or content.partition(b"\r\n\r\n")[2] != body

    async def send(self, rate: float, faults: asyncio.Task[None]) -> None:
        """Sends `rate` mails a second, until the faults are over."""
        told = time.monotonic()
        while not faults.done():
            now = time.monotonic()
            number = len(self.letters)
            recipient = "otp@bob.example" if self.chance.random() < self.pads else "aes@bob.example"
            body = "".join(f"{number} {self.chance.random()}\r\n" for _ in range(self.chance.randint(5, 150)))
            octets = mails.plain(body=body).replace(b"<1@", b"<%d@" % number)
            letter = Letter(number, recipient, octets, now)
            self.letters.append(letter)
            self.start(self.to_alice.until_taken(letter, octets))
            if not self.memory and len(self.episodes.past) > WARM_EPISODES:
                self.memory = {name: _resident(relay.process.pid) for name, relay in self.relays.items()}
            if now - told >= 10:
                told = now
                self.progress(self.state())
            await asyncio.sleep(self.chance.expovariate(rate))
        self.report.memory_growth = {
            name: _resident(self.relays[name].process.pid) - before for name, before in self.memory.items()
        }

    def state(self) -> str:
        """One line on how far it is."""
        there = sum(bool(letter.arrived) for letter in self.letters)
        sealed = sum(letter.sealed_at is not None for letter in self.letters)
        last = self.episodes.past[-1] if self.episodes.past else "none"
        return f"{len(self.letters)} sent, {sealed} sealed, {there} there; last episode: {last}"

    def why_destroyed(self, letter: Letter) -> str | None:
        """What the KME did to a key of this mail so that nobody can have it any more."""
        for key_ID in letter.key_IDs:
            if self.link.keys[key_ID].destroyed:
                return "dropped before delivery"
            if self.link.keys[key_ID].lost == "spent":
                return "spent on an answer that broke off or was garbled"
        return None

    async def settle(self, longest: float) -> None:
        """Waits until each mail is there or cannot be any more."""
        end = time.monotonic() + longest
        while time.monotonic() < end and any(
            not letter.taken_by_bob and self.why_destroyed(letter) is None for letter in self.letters
        ):
            await asyncio.sleep(0.1)
        self.to_alice.over = self.to_bob.over = True
        for task in self.under_way:
            task.cancel()
        await asyncio.gather(*self.under_way, return_exceptions=True)

    def check(self) -> None:
        """Enters what came of it."""
        report, past, now = self.report, self.episodes.past, time.monotonic()
        users: defaultdict[str, set[int]] = defaultdict(set)
        waits: list[float] = []
        for letter in self.letters:
            for key_ID in letter.key_IDs:
                users[key_ID].add(letter.number)
            faults: list[str] = []
            if letter.arrived:
                waits.append(letter.waited(past, now))
            elif (why := self.why_destroyed(letter)) is not None:
                report.destroyed_by_kme[why] += 1
                report.destroyed_are_told[list(letter.answers)[-1]] += 1
            else:
                faults.append("lost")
            if letter.arrived and waits[-1] > HELD_S:
                faults.append(f"held for {waits[-1]:.0f} s after the last fault")
            if len(letter.arrived) > 1 or len(letter.sealed) > 1:
                faults.append(f"came {len(letter.arrived)} times, was sealed {len(letter.sealed)} times")
            if letter.changed:
                faults.append("changed")
            if b"" in letter.sealed:
                faults.append("not sealed")
            if any(not answer.split(": ")[1].startswith(("250", "451")) for answer in letter.answers):
                faults.append("answered with something else than 250 and 451")
            report.faults += [f"{fault}: {letter.story(past)}" for fault in faults]
        report.faults += [f"key {key_ID} was used for mails {each}" for key_ID, each in users.items() if len(each) > 1]
        report.sent, report.arrived = len(self.letters), len(waits)
        if waits:
            waits.sort()
            report.waited_after_fault = {
                name: round(waits[int(part * (len(waits) - 1))], 2)
                for name, part in (("median", 0.5), ("99 %", 0.99), ("longest", 1.0))
            }
        report.keys_issued, report.keys_used = self.link.issued.total(), len(users)
        report.episodes, report.one_by_one = [str(episode) for episode in past], self.episodes.one_by_one
        for name, relay in self.relays.items():
            report.log_events[name] = _events(relay.log)


async def soak(
    directory: Path,
    *,
    seconds: float = 0.0,
    rounds: int = 0,
    rate: float = 12.0,
    seed: int = 1,
    lasting: tuple[float, float] = (5.0, 60.0),
    well: tuple[float, float] = (10.0, 90.0),
    failing: float = 0.02,
    kinds: Sequence[str] = KINDS,
    always_drops: bool = False,
    trial: bool = True,
    pads: float = PAD_SHARE,
    settings: str = "",
    settle: float = 150.0,
    longest_pause: float = LONGEST_PAUSE_S,
    progress: Callable[[str], None] = lambda _line: None,
) -> Report:
    """Mails while KMEs fail, for so many seconds or rounds of all kinds; then all is well, and every promise is checked.

    `trial` False: no relay can try whether its KME drops keys. `pads` is the share of mails at level otp.
    `settings` go into the KME's table at both sites.
    """
    report, began = Report(), time.monotonic()
    link = LinkSettings(
        key_rate=1e9, stored_key_limit=100_000_000, lifetime=1e9, max_sae_id_count=int(trial), remembered=10_000_000
    )
    kmes = DevelopmentKMEs(state_dir=directory / "kme", host="127.0.0.1", ports=(0, 0), link=link)
    chance = random.Random(seed)
    episodes = Episodes(kmes.link, random.Random(f"{seed}/episodes"), lasting, well, failing, kinds, always_drops)
    run = Soak(episodes, kmes.link, chance, report, progress, longest_pause, pads)
    async with kmes, _relays(directory, run, settings, kmes):
        async with asyncio.TaskGroup() as group:
            faults = group.create_task(episodes.run(time.monotonic() + seconds, rounds))
            group.create_task(run.send(rate, faults))
        await run.settle(settle)
        run.check()
        # With calls under way at a KME that hangs the relays would wait for them.
        await kmes.stop()
    report.seconds = round(time.monotonic() - began, 1)
    return report


@asynccontextmanager
async def _relays(directory: Path, run: Soak, settings: str, kmes: DevelopmentKMEs) -> AsyncIterator[None]:
    """Relays as processes, and the listeners behind them."""
    state = kmes.state_dir
    run.episodes.decide_for("alice", kmes.km1)
    run.episodes.decide_for("bob", kmes.km2)
    async with AsyncExitStack() as stack:
        wire = await stack.enter_async_context(Listener(run.sealed))
        mailboxes = await stack.enter_async_context(Listener(run.opened))
        alice = make_site(
            directory / "alice", "alice", state=state, kme_url=kmes.urls[0], outgoing=wire.address, policies=POLICIES
        )
        # Nobody sends mail to Alice, and with one pair of KMEs for both directions Bob's keys would drop Alice's.
        bob = make_site(
            directory / "bob", "bob", state=state, kme_url=kmes.urls[1], incoming=mailboxes.address,
            kme_settings="prefetch = false\n",
        )  # fmt: skip
        for site in (alice, bob):
            _with_usual_settings(site, settings)
        for name, site in (("alice", alice), ("bob", bob)):
            run.relays[name] = await stack.enter_async_context(relay_process(site))
        run.to_alice.address = run.relays["alice"].addresses["outgoing"]
        run.to_bob.address = run.relays["bob"].addresses["incoming"]
        yield


def _with_usual_settings(site: Site, settings: str) -> None:
    """Tests' sites are in a hurry; these are as an administrator has them."""
    text = site.config_file.read_text()
    assert USUAL in text
    site.config_file.write_text(text.replace(USUAL, settings))


def _resident(pid: int) -> int:
    """Octets of memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _events(log: str) -> Counter[str]:
    """How often each warning and error stands in it."""
    found: Counter[str] = Counter()
    for line in log.splitlines():
        if '"level": "warning"' in line or '"level": "error"' in line:
            found[line.partition('"event": "')[2].partition('"')[0]] += 1
    return found


@click.command()
@click.option("--seconds", default=60.0, show_default=True, help="How long mail is sent.")
@click.option("--rate", default=12.0, show_default=True, help="Mails a second.")
@click.option("--seed", default=1, show_default=True, help="Chooses mails, faults and their order.")
@click.option(
    "--lasting",
    type=(float, float),
    default=(5.0, 60.0),
    show_default=True,
    help="Least and most seconds of an episode.",
)
@click.option(
    "--well", type=(float, float), default=(10.0, 90.0), show_default=True, help="Least and most seconds between two."
)
@click.option("--failing", default=0.02, show_default=True, help="Share of requests that fail by themselves.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice([*KINDS, "none"]), help="Only these episodes.")
@click.option("--always-drops", is_flag=True, help="The KMEs drop undelivered keys all the time.")
@click.option("--no-trial", is_flag=True, help="A relay cannot try whether its KME drops keys.")
@click.option("--pads", default=PAD_SHARE, show_default=True, help="Share of mails at level otp.")
@click.option("--setting", "settings", multiple=True, help="A line for the KME's table in relay.toml.")
@click.option("--keep", type=click.Path(path_type=Path), help="Leave all files in this new directory.")
def main(
    seconds: float,
    rate: float,
    seed: int,
    lasting: tuple[float, float],
    well: tuple[float, float],
    failing: float,
    kinds: tuple[str, ...],
    always_drops: bool,
    no_trial: bool,
    pads: float,
    settings: tuple[str, ...],
    keep: Path | None,
) -> None:
    """Mail through two relays over KMEs that fail in episodes; every promise is checked afterwards."""
    with tempfile.TemporaryDirectory() as directory:
        place = keep or Path(directory)
        place.mkdir(parents=True, exist_ok=True)
        report = asyncio.run(
            soak(
                place, seconds=seconds, rate=rate, seed=seed, lasting=lasting, well=well, failing=failing,
                kinds=[kind for kind in kinds or KINDS if kind != "none"], always_drops=always_drops,
                trial=not no_trial, pads=pads, settings="".join(f"{line}\n" for line in settings),
                progress=lambda text: click.echo(text, err=True),
            )
        )  # fmt: skip
    for episode in report.episodes:
        click.echo(f"episode: {episode}")
    tell_and_exit(report, ["episodes"])


if __name__ == "__main__":
    main()
