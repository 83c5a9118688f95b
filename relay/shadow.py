"""Shadow mode: follows the outgoing recipe up to the sealing, says what would have come of it, and changes nothing.
Standard: no key is taken and no content kept; a mail whose treatment nobody could foresee passes all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from relay.errors import RelayError
from relay.keys.ring import KeyRing
from relay.levels.content import off_loop
from relay.mail import Mail
from relay.policy import Content
from relay.policy.foresee import Outcome
from relay.policy.shadow import Foreseen, ShadowRecord
from relay.sealing import Sealer
from relay.store.ledger import Entry

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Shadow:
    """What it works with; `record` keeps what it finds, for `policy simulate --shadow`."""

    sealer: Sealer
    keys: KeyRing
    record: ShadowRecord | None = None

    async def foresee(self, mail: Mail) -> list[Entry]:
        """What the ledger has to know, but of those whose mail policy lets out in clear."""
        policies = self.sealer.policies()
        content = Content(mail.message)
        foresight = self.sealer.foresight(self.keys.can_supply)
        found: list[Foreseen] = []
        for recipient in mail.envelope.recipients:
            try:
                decision = policies.decide(mail.envelope.sender, recipient.address, content)
            except RelayError as error:
                log.warning("shadow", result="held", causes=[str(error)], policy_version=policies.version)
                continue
            waited = content.waited(datetime.now(UTC))
            found.append(Foreseen(decision, content.size, await foresight.outcome(decision, content.size, waited)))
        for each in found:
            _log(each.outcome, each.as_dict())
        if self.record is not None:
            self.record.add(found)
        alike: dict[tuple[str, str | None, Outcome], list[Foreseen]] = {}
        for each in found:
            if not each.decision.in_clear:
                alike.setdefault((each.decision.where, each.decision.peer, each.outcome), []).append(each)
        return await off_loop(content.size, lambda: [_entry(mail, foreseen) for foreseen in alike.values()])


def _log(outcome: Outcome, fields: dict[str, object]) -> None:
    """Without the addresses, which log lines do not have."""
    said = {name: value for name, value in fields.items() if name not in ("sender", "recipient")}
    log.info("shadow", reply=outcome.reply, **said)


def _entry(mail: Mail, foreseen: list[Foreseen]) -> Entry:
    """For all recipients whom one policy would treat alike."""
    decision, outcome = foreseen[0].decision, foreseen[0].outcome
    return Entry.of(
        "shadow",
        mail,
        [each.decision.recipient for each in foreseen],
        policy=decision.where,
        policy_version=decision.version,
        peer=decision.peer,
        listed=decision.levels,
        used="plaintext",
        reason=f"shadow mode: it would have been {outcome.result} {outcome.protection}".rstrip(),
    )
