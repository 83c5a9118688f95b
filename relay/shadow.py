"""Shadow mode: follows the outgoing recipe up to the sealing, says what would have come of it, and changes nothing.
Standard: no key is taken and no content kept; a mail whose treatment nobody could foresee passes all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from relay.errors import RelayError
from relay.keys.keyring import KeyRing
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
        """What the ledger has to know, one entry for each recipient whose mail policy does not let out in clear."""
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
        return [_entry(mail, each) for each in found if not each.decision.in_clear]


def _log(outcome: Outcome, fields: dict[str, object]) -> None:
    """Without the addresses, which log lines do not have."""
    said = {name: value for name, value in fields.items() if name not in ("sender", "recipient")}
    log.info("shadow", reply=outcome.reply, **said)


def _entry(mail: Mail, foreseen: Foreseen) -> Entry:
    decision, outcome = foreseen.decision, foreseen.outcome
    return Entry.of(
        "shadow",
        mail,
        [decision.recipient],
        policy=decision.where,
        policy_version=decision.version,
        peer=decision.peer,
        listed=decision.levels,
        used="plaintext",
        reason=f"shadow mode: it would have been {outcome.result} {outcome.protection}".rstrip(),
    )
