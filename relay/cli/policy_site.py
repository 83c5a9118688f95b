"""What the policy commands work with: configuration, policies, keys, and what would be sealed with them.
Standard: nothing is started, stored or taken; a KME is asked once for its status, and not again and again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from relay import app, mime
from relay.cli.logs import configure_logging
from relay.config import Config, Log, load_config
from relay.errors import ConfigError, MalformedMessage, RelayError
from relay.identity import PeerCertificates
from relay.keys.build import key_ring
from relay.keys.ring import KeyRing
from relay.mail import Recipient
from relay.plan import Outcome
from relay.planner import Decided, Planner, decide, seconds_waited
from relay.policy import PolicySet, load_policies
from relay.policy.findings import Capabilities, column_of
from relay.policy.names import printable
from relay.policy.traffic import Sample


@dataclass(frozen=True, slots=True)
class PolicySite:
    """A site as its files describe it."""

    config: Config
    certificates: dict[str, PeerCertificates]
    policies: PolicySet

    @property
    def largest(self) -> int:
        """The largest message that leaves through this relay, in octets."""
        direction = self.config.outgoing or self.config.incoming
        return direction.max_message_size if direction is not None else 0

    @asynccontextmanager
    async def keys(self) -> AsyncIterator[KeyRing | None]:
        """The site's keys, with nothing running; None where the KMEs' certificates cannot be used."""
        impatient = {
            name: kme.model_copy(update={"retry_attempts": 0}) for name, kme in self.config.kmes.items()
        }  # fmt: skip
        try:
            ring = key_ring(self.config.model_copy(update={"kmes": impatient}), prefetch=False)
        except ConfigError:
            yield None
            return
        try:
            yield ring
        finally:
            await ring.close()

    def planner(self) -> Planner:
        """Plans what would become of mail. Raises ConfigError."""
        return app.planner(self.config, self.certificates)

    async def foresee(
        self, planner: Planner, sample: Sample, recipients: Iterable[str], keys: KeyRing | None = None
    ) -> list[Outcome]:
        """What would become of a message for these recipients; without `keys`, as if all were there."""
        everybody, content, octets = list(map(Recipient, recipients)), sample.content, sample.octets
        decided: list[Decided] = []
        seconds, original = None, None
        try:
            decided = decide(self.policies, sample.sender, everybody, content)
            if content is not None:
                original = mime.without_hidden_fields(content.message)
                octets -= content.size - len(original)
                seconds = seconds_waited(content, decided)
        except MalformedMessage as error:
            decided = [(each, error) for each in everybody]
        plan = await planner.foresee(decided, octets, seconds, keys, original)
        return [each for group in plan for each in group.outcomes(sample.sender, sample.octets)]

    async def capabilities(self, keys: KeyRing | None) -> Capabilities:
        """What relay and peers can do; how long pads may be is asked of the KMEs."""
        pads: dict[str, int] = {}
        for name, peer in self.config.peers.items():
            if keys is not None and (most := await _most(keys, peer.sae_id, peer.kme_groups)):
                pads[name] = most
        return Capabilities(self.planner().obstacle, pads, self.largest)


async def _most(keys: KeyRing, sae_id: str, groups: tuple[str, ...]) -> int | None:
    """The octets of key that the fullest of a peer's KME groups can hold; None where a KME does not say."""
    found: list[int] = []
    for name in groups:
        octets = 0
        for pool in keys.groups[name].pools if name in keys.groups else ():
            try:
                status = await pool.limits(sae_id)
            except RelayError:
                return None
            if status is None or not status.max_key_count:
                return None
            octets += status.max_key_count * (status.key_size or 256) // 8
        found.append(octets)
    return max(found, default=None)


def load_site(config_file: Path, directory: Path | None = None) -> PolicySite:
    """Configuration and policies (`directory` instead of the configured one); prints every fault and exits with 1."""
    configure_logging(Log(level="error"))
    config: Config | None = None
    try:
        config, certificates = app.with_documents(load_config(config_file))
        policies = load_policies(
            directory or config.policies.directory, config.peer_domains, max_bounce=config.max_bounce
        )
    except ConfigError as error:
        for problem in error.problems:
            in_policy = config is not None
            click.echo(printable(with_column(problem) if in_policy else problem), err=True)
        raise SystemExit(1) from error
    return PolicySite(config, certificates, policies)


def with_column(problem: str) -> str:
    """`file:line: setting: what` as `file:line:column: setting: what`, where the line can be read."""
    place, _, what = problem.partition(": ")
    source, _, line = place.rpartition(":")
    if not line.isdigit() or not source or source.rpartition(":")[2].isdigit():
        return problem
    try:
        text = Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError):
        return problem
    setting = what.partition(":")[0].rpartition(".")[2]
    return f"{source}:{line}:{column_of(text, int(line), setting)}: {what}"
