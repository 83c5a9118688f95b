"""What the policy commands work with: configuration, policies, keys, and what would be sealed with them now.
Nothing is started, stored or taken; a KME is asked once for its status, and not again and again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from relay.cli.as_relay import relay_rights
from relay.cli.policy_config import exit_with, load_configuration
from relay.config import Config
from relay.errors import ConfigError, RelayError
from relay.formats import mime
from relay.identity import PeerCertificates, only_sending, own_identity
from relay.journey.plan import Outcome
from relay.journey.planner import Decided, Planner, check_shown, decide, seconds_waited
from relay.mail import Recipient
from relay.policy.content import MessageFacts
from relay.policy.decide import Explanation, PolicySet
from relay.policy.expected import DescribedMessage
from relay.policy.findings import Doubt, doubtful
from relay.policy.load import PolicyFolder
from relay.policy.traffic import TrafficSample
from relay.schemes.all import all_schemes
from relay.smime.sealing import SMIMESealer

if TYPE_CHECKING:
    from relay.keys.report import PoolRow
    from relay.keys.ring import KeyRing
    from relay.schemes import Supplies


@dataclass(frozen=True, slots=True)
class PolicySite:
    """A site as its files describe it."""

    config: Config
    certificates: dict[str, PeerCertificates]
    policies: PolicySet

    @asynccontextmanager
    async def keys(self) -> AsyncIterator[KeyRing | None]:
        """The site's keys, with nothing running; None where the KMEs' certificates cannot be used."""
        # Here, so that a command that asks no KME does not load what asks them.
        from relay.keys.build import key_ring

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
        with relay_rights(self.config):
            own, smime = own_identity(self.config), SMIMESealer.of(self.config)
            return Planner(self.config, all_schemes(self.config), own, self.certificates, smime)

    async def foresee(
        self, planner: Planner, sample: TrafficSample, recipients: Iterable[str], keys: Supplies | None = None
    ) -> list[Outcome]:
        """What would become of a message for these recipients; without `keys`, as if all were there.

        What the relay refuses before it asks policy is refused here, by the same checks.
        """
        everybody, content, size = list(map(Recipient, recipients)), sample.content, sample.size
        refused, seconds, original = self.refused_at_once(sample), None, None
        try:
            if refused is not None:
                raise refused
            decided: list[Decided] = decide(self.policies, sample.sender, everybody, content)
            if content is not None:
                original = mime.without_hidden_fields(content.message)
                size -= content.size - len(original)
                seconds = seconds_waited(content, decided)
        except RelayError as error:
            decided = [(each, error) for each in everybody]
        plan = await planner.foresee(decided, size, seconds, keys, original)
        outcomes = [each for group in plan for each in group.outcomes(sample.sender, sample.size)]
        return outcomes if refused is None else [replace(each, policy="before any policy") for each in outcomes]

    def refused_at_once(self, sample: TrafficSample) -> RelayError | None:
        """Why the relay refuses a message whatever its policies say, if so; without content nothing is known."""
        direction = self.config.outgoing or self.config.incoming
        if direction is None or sample.content is None:
            return None
        try:
            mime.check_size(sample.size, direction.max_message_size)
            mime.check_carriable(sample.content.message, direction.max_hops)
            check_shown(sample.content.message)
        except RelayError as error:
            return error
        return None

    def doubts(self) -> Iterator[Doubt]:
        """What is doubtful about the policies. Raises ConfigError."""
        return doubtful(self.policies, self.planner().obstacle_for_peer, only_sending(self.certificates))


def load_site(config_file: Path, directory: Path | None = None, *, tested: bool = False) -> PolicySite:
    """Configuration and policies (`directory` instead of the configured one); prints every fault and exits with 1.

    Root reads them as the relay's user, so that what the relay may not read is a fault. With `tested`, a test of
    tests.toml that fails is one too.
    """
    config, certificates = load_configuration(config_file)
    with relay_rights(config):
        try:
            return PolicySite(config, certificates, read_policies(config, directory, tested=tested))
        except ConfigError as error:
            exit_with(error)


def read_policies(config: Config, directory: Path | None = None, *, tested: bool = False) -> PolicySet:
    """The policies in the directory, or in that of relay.toml, as the relay's user reads them. Raises ConfigError.

    With `tested`, a test of tests.toml that fails is a fault.
    """
    folder = PolicyFolder.of(config, directory)
    with relay_rights(config):
        return folder.read_tested() if tested else folder.read()


@dataclass(frozen=True, slots=True)
class OutcomeNow:
    """`outcome` for a message of `size` bytes; `keys` are the peer's KMEs, `unknown` says what could not be found out.

    The message may only be `described`. `offline` assumes that all keys are there. Keys that the
    serving relay has ready are not counted.
    """

    outcome: Outcome | None
    size: int
    described: bool = False
    offline: bool = False
    keys: tuple[PoolRow, ...] = ()
    unknown: str = ""


async def look_now(site: PolicySite, explanation: Explanation, content: MessageFacts, *, offline: bool) -> OutcomeNow:
    """What would become of the message now; KMEs are asked for their status, or all keys are taken to be there."""
    size, described = content.size, isinstance(content, DescribedMessage)
    sample = TrafficSample("", explanation.sender, (explanation.recipient,), size, content)
    try:
        planner = site.planner()
    except ConfigError as error:
        return OutcomeNow(None, size, described, offline, unknown="; ".join(error.problems))
    decision = explanation.decision
    if offline or decision is None:
        [outcome] = await site.foresee(planner, sample, sample.recipients)
        unknown = "no KME was asked: the keys are taken to be there" if offline and outcome.quantum_bits else ""
        return OutcomeNow(outcome, size, described, offline, unknown=unknown)
    async with site.keys() as keys:
        rows = await _rows(keys, decision.peer) if keys is not None else ()
        [outcome] = await site.foresee(planner, sample, sample.recipients, keys)
        unknown = "" if keys is not None else "the KMEs could not be asked: their certificates cannot be used"
        return OutcomeNow(outcome, size, described, offline, rows, unknown)


async def _rows(keys: KeyRing, peer: str | None) -> tuple[PoolRow, ...]:
    if peer is None or peer not in keys.peers:
        return ()
    return tuple(row for row in (await keys.report()).pools if row.peer == peer)
