"""`qumail-relay keys trial`: draws a key from each KME, and tests with a canary whether the peer's relay finds one.
Standard: ETSI GS QKD 014 V1.1.1, 5.3 and 5.4; relay/FORMAT.md, section 11. An untested pair never counts as working.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from relay.canary.box import ANSWER_S
from relay.canary.message import NONCE_OCTETS, CanaryNote, canary_address, write
from relay.canary.post import obstacle
from relay.cli.as_relay import load
from relay.cli.keys import serves
from relay.cli.logs import configure_logging
from relay.cli.options import as_relay_option
from relay.cli.output import plain_console
from relay.config import Config, LogSettings
from relay.errors import ConfigError, RelayError, StoreUnavailable
from relay.identity import with_documents
from relay.journey.sealing import SealedCopy
from relay.keys.asking import Asker
from relay.keys.replies import USUAL_KEY_BITS
from relay.keys.undelivered import recalled, remember
from relay.mail import Envelope, Mail, Recipient
from relay.policy.content import MessageFacts
from relay.process import assembly
from relay.process.assembly import Parts
from relay.runtime.stopping import stop_on_signals

LOOK_S = 0.1
"""Poll interval for the receipt in the store, in seconds."""
MARGIN_S = 5.0
"""Margin added to a peer's answer interval for clock skew and mail in flight, in seconds."""


@dataclass(frozen=True, slots=True)
class KeyTrial:
    """The result for one KME and peer: successes, faults, and why the peer was not tested; "" for none."""

    done: str = ""
    problem: str = ""
    untried: str = ""


async def draw_a_key(client: Asker, slave_sae: str) -> str:
    """Draws and discards one key, and describes it. Raises KeyUnavailable."""
    status = await client.check_key_status(slave_sae, patient=False)
    [key] = await client.draw_keys(slave_sae, 1, status.key_size or USUAL_KEY_BITS, patient=False)
    client.accounts.issued_and_burnt(slave_sae, 1, "trial")
    return f"gave a key of {8 * len(key.key)} bits"


@click.command()
@as_relay_option
@click.option("--peer", "only_peer", metavar="NAME", help="Only this peer. [default: all]")
@click.option("--kme", "only_kme", metavar="NAME", help="Only this KME. [default: all]")
@click.option("--wait", type=click.FloatRange(0), default=60.0, show_default=True, help="Seconds until an answer.")
def trial(config_file: Path, only_peer: str | None, only_kme: str | None, wait: float) -> None:
    """Have each KME give a key for each peer, and the peer's relay find one: it costs two keys and a small mail's.

    A canary is sealed as policy says, with keys of that KME alone, and goes to the peer by the next hop. The peer's
    relay answers once it has opened it, and the relay that serves here takes the answer. A peer answers once in 50
    seconds: a second KME of the same peer has to wait for it. Exit status 1 where a KME gave no key, or no answer came.
    """
    configure_logging(LogSettings(level="error"))
    config, _ = with_documents(load(config_file))
    peers, kmes = _chosen(only_peer, config.peers, "peer"), _chosen(only_kme, config.kmes, "KME")
    places = [(kme, peer) for kme in kmes for peer in peers if config.kmes[kme].group in config.peers[peer].kme_groups]
    if not places:
        raise ConfigError("nothing to try: none of these peers has the group of one of these KMEs")
    if not asyncio.run(_all_well(plain_console(), config, places, wait)):
        sys.exit(1)


def _chosen(only: str | None, known: Iterable[str], kind: str) -> list[str]:
    """Returns the chosen name, or all. Raises ConfigError for an unknown name."""
    names = list(known)
    if only is not None and only not in names:
        raise ConfigError(f"{only}: no {kind} of this name; there is {', '.join(names) or 'none'}")
    return names if only is None else [only]


async def _all_well(console: Console, config: Config, places: list[tuple[str, str]], wait: float) -> bool:
    """Runs all trials in order, and prints the results."""
    well = True
    with stop_on_signals() as stop:
        for kme, peer in places:
            trial = await stop.or_end(_tried(console, config, kme, peer, wait))
            state = Text("WRONG  ", "bold red") if trial.problem else Text("ok     ", "green")
            said = "; ".join(each for each in (trial.done, trial.problem, trial.untried) if each)
            console.print(Text.assemble(state, (f"KME {kme}, peer {peer}", "bold"), f"  {said}"), soft_wrap=True)
            well = well and not trial.problem
    return well


async def _tried(console: Console, config: Config, kme: str, peer: str, wait: float) -> KeyTrial:
    """Runs the trial with parts that know only this KME, so that all keys come from it."""
    trial = KeyTrial()
    try:
        async with assembly.parts(config.model_copy(update={"kmes": {kme: config.kmes[kme]}}), prefetch=False) as parts:
            [pool] = parts.keys.groups[config.kmes[kme].group].pools
            client, slave_sae = pool.client, config.peers[peer].sae_id
            # Before any key is drawn: drawing makes such a KME drop the relay's ready keys, and lose mail under them.
            place, status = (client.url, config.site.sae_id, slave_sae), await client.check_key_status(slave_sae)
            known = await recalled(parts.store.trials, place, status)
            if serves(config) and (pool.undelivered.pause or known in ("dropped", "counted")):
                return KeyTrial(problem=_DROPS)
            trial = KeyTrial(await draw_a_key(client, slave_sae))
            canary = TrialCanary.to(parts, peer)
            if why := canary.obstacle or _nobody_hears(config):
                return replace(trial, untried=f"whether the peer finds it was not tried: {why}")
            sealed = await canary.sealed()
            if not sealed.keys:
                why = f"its canary leaves by {sealed.protection}, which costs no quantum key"
                return replace(trial, untried=f"whether the peer finds it was not tried: {why}")
            await draw_a_key(client, slave_sae)  # if the KME drops undelivered keys, those of the canary are lost now
            seconds = await canary.answered(sealed, console, wait)
            if seconds is not None:
                await remember(parts.store.trials, place, status, "kept")
    except (RelayError, OSError) as error:
        return replace(trial, problem=f"{type(error).__name__}: {error}")
    if seconds is None:
        return replace(trial, problem=_UNANSWERED.format(wait=wait, peer=peer))
    return replace(trial, done=f"{trial.done}; the peer's relay fetched and used it: answer after {seconds:.1f} s")


_UNANSWERED = (
    "no answer of peer {peer} within {wait:.0f} s: its relay did not get the key from its own KME (or the KME drops "
    "keys that were not fetched when more are asked for), or the mail did not reach it, or it answers no canaries (its "
    "log: mail_held, canary_dropped), or its answer was not opened here (our log)"
)
_DROPS = (
    "not tried beside the relay that serves: this KME drops keys that the peer has not fetched when more are asked "
    "for, and mail under them would be lost; stop the relay first"
)


def _nobody_hears(config: Config) -> str:
    """Why no answer could arrive; "" if one can."""
    if config.incoming is None:
        return "without [incoming] no answer can come here"
    return "" if serves(config) else "no relay serves here that could take the answer"


@dataclass(frozen=True, slots=True)
class TrialCanary:
    """A canary for one peer from this process; the serving relay takes the answer into the store."""

    parts: Parts
    peer: str
    nonce: bytes
    envelope: Envelope
    message: bytes

    @classmethod
    def to(cls, parts: Parts, peer: str) -> TrialCanary:
        """Creates a canary with a fresh nonce."""
        config, nonce = parts.config, secrets.token_bytes(NONCE_OCTETS)
        ours, theirs = canary_address(config.site.domains), canary_address(config.peers[peer].domains)
        message = write(CanaryNote("question", nonce), ours, theirs, config.site.hostname)
        return cls(parts, peer, nonce, Envelope(ours, (Recipient(theirs, notify="NEVER"),)), message)

    @property
    def obstacle(self) -> str:
        """Why policy allows no canary to the peer; "" if it does."""
        config = self.parts.config
        if config.outgoing is None:
            return "without [outgoing] no mail leaves here"
        [recipient] = self.envelope.recipients
        content = MessageFacts(self.message)
        shadow = config.policies.shadow
        return obstacle(self.parts.policies(), self.envelope.sender, recipient.address, shadow=shadow, content=content)

    async def sealed(self) -> SealedCopy:
        """Returns the canary, sealed as policy says. Raises RelayError."""
        sealed = await self.parts.sealer.seal(Mail(self.envelope, self.message))
        for failure in sealed.failures.values():
            raise failure
        [copy] = sealed.copies
        return copy

    async def answered(self, sealed: SealedCopy, console: Console, wait: float) -> float | None:
        """Seconds until the answer, None after the timeout. Raises RelayError if the canary cannot be sent."""
        table = self.parts.store.canaries
        before = (await table.read()).get(self.peer)
        pause = before.asked_at + ANSWER_S + MARGIN_S - table.clock() if before is not None else 0.0
        if 0 < pause <= ANSWER_S + MARGIN_S:
            console.print(f"       {self.peer} answers once in {ANSWER_S:.0f} s: {pause:.0f} s to wait")
            await asyncio.sleep(pause)
        if not await table.ask(self.peer, self.nonce, every=0.0, limit=2 * wait + ANSWER_S):
            raise StoreUnavailable("another canary was asked for at the same moment: run this again")
        asked = (await table.read())[self.peer]
        result = await self.parts.next_hops["outgoing"].deliver(Mail(self.envelope, sealed.message))
        for refusal in result.outcomes:
            if refusal is not None:
                raise refusal
        with suppress(TimeoutError):
            async with asyncio.timeout(wait):
                while True:
                    row = (await table.read())[self.peer]
                    if row.asked_at != asked.asked_at:
                        raise StoreUnavailable("another canary took the place of this one: run this again")
                    if not row.is_out:
                        return row.round_trip
                    await asyncio.sleep(LOOK_S)
        return None
