"""An example mail for the conditions of a rule, as a test in tests.toml has it, and what both sets decide about it.
Standard: policies/README.md; each star stands for an x, and what no condition asks for is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from relay.errors import RelayError
from relay.policy.comparing.conditions import Conditions
from relay.policy.comparing.effects import Effect, MailOutcome
from relay.policy.comparing.kinds import Kind
from relay.policy.comparing.time_limit import check_time
from relay.policy.decide import PolicySet
from relay.policy.expected import Test
from relay.policy.patterns import Glob
from relay.policy.people import NULL_SENDER

SOMEBODY = "somebody@elsewhere.invalid"
MAX_SENDERS = 4
"""Maximum number of senders tried whom rules leave out."""


def examples(conditions: Conditions | None, kind: Kind, avoided: Sequence[Effect]) -> Iterator[Test]:
    """Mails that fit, the later ones from senders whom the rules to be avoided leave out."""
    asked = conditions or Conditions()
    senders = asked.sender[:1] if asked.sender else (Glob.of(SOMEBODY), *islice(_left_out(avoided), MAX_SENDERS))
    for sender in senders:
        yield _example(asked, _filled(sender), kind)


def _left_out(effects: Iterable[Effect]) -> Iterator[Glob]:
    return (glob for effect in effects for glob in (effect.conditions.not_sender or ())[:1])


def _example(asked: Conditions, sender: str, kind: Kind) -> Test:
    fields = (f"{name}: {_filled(glob) if glob is not None else 'x'}" for name, glob in asked.fields[:1])
    return Test.model_construct(
        sender="" if sender == NULL_SENDER else sender,
        recipient=_filled(asked.recipient[0]) if asked.recipient else kind.text,
        login=_filled(asked.users[0]) if asked.users and not asked.sender else "",
        subject=_filled(asked.tags[0]) if asked.tags else "",
        header=tuple(fields),
        attachments=tuple(map(_filled, asked.names[:1])),
        expect="held",  # which nobody asks
    )


def decided(policies: PolicySet, mail: Test) -> MailOutcome:
    """What a set decides about it."""
    check_time()
    try:
        return policies.decide(mail.sender, mail.recipient, mail.content(policies.site))
    except RelayError:
        return None


def _filled(glob: Glob) -> str:
    return str(glob).replace("*", "x").strip()
