"""An example mail for the conditions of a rule, and what both sets decide about it.
Standard: policies/README.md; each star stands for an x, and what no condition asks for is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from relay.errors import RelayError
from relay.policy.comparing.conditions import Conditions
from relay.policy.comparing.differences import ExampleMail
from relay.policy.comparing.effects import Effect, MailOutcome
from relay.policy.comparing.kinds import Kind
from relay.policy.comparing.time_limit import check_time
from relay.policy.decide import PolicySet
from relay.policy.expected import NOBODY, DescribedMessage
from relay.policy.patterns import Glob
from relay.policy.people import NULL_SENDER
from relay.policy.settings import today

SOMEBODY = "somebody@elsewhere.invalid"
MAX_SENDERS = 4
"""Maximum number of senders tried whom rules leave out."""


def examples(conditions: Conditions | None, kind: Kind, avoided: Sequence[Effect]) -> Iterator[ExampleMail]:
    """Mails that fit, the later ones of sizes and from senders that the rules to be avoided leave out."""
    asked = conditions or Conditions()
    senders = asked.sender[:1] if asked.sender else (Glob.of(SOMEBODY), *islice(_left_out(avoided), MAX_SENDERS))
    largest = max((effect.conditions.smaller_than or 0 for effect in avoided), default=0)
    for sender in senders:
        for least in dict.fromkeys((0, largest)):
            yield _example(asked, _filled(sender), kind, least)


def _left_out(effects: Iterable[Effect]) -> Iterator[Glob]:
    return (glob for effect in effects for glob in (effect.conditions.not_sender or ())[:1])


def _example(asked: Conditions, sender: str, kind: Kind, least: int) -> ExampleMail:
    sender = "" if sender == NULL_SENDER else sender
    login = _filled(asked.users[0]) if asked.users and not asked.sender else ""
    fields = [f"From: {sender or NOBODY}"]
    fields += [f"{name}: {_filled(glob) if glob is not None else 'x'}" for name, glob in asked.fields[:1]]
    attachments = []
    if asked.names or asked.types:
        name = _filled(asked.names[0]) if asked.names else "x"
        attachments = [f"{name}: {_filled(asked.types[0]) if asked.types else 'application/octet-stream'}"]
    subject = _filled(asked.tags[0]) if asked.tags else ""
    content = DescribedMessage(subject, tuple(fields), tuple(attachments), None, login)
    size = max(content.size, least, (asked.larger_than or 0) + 1)
    if asked.smaller_than is not None:
        size = min(size, asked.smaller_than - 1)
    recipient = _filled(asked.recipient[0]) if asked.recipient else kind.text
    described = DescribedMessage(subject, tuple(fields), tuple(attachments), size, login)
    return ExampleMail(sender, recipient, described, today())


def decided(policies: PolicySet, mail: ExampleMail) -> MailOutcome:
    """What a set decides about it."""
    check_time()
    try:
        return policies.decide(mail.sender, mail.recipient, mail.content)
    except RelayError:
        return None


def _filled(glob: Glob) -> str:
    return str(glob).replace("*", "x").strip()
