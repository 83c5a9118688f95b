"""Rules on milters: signers must see the sealed form, none runs twice, and none lets mail pass in clear.
Standard: MILTER_README, RFC 6376 (a signature holds for the message that leaves, which is the sealed one).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from relay.postfix.flow import MailFlow, is_milter_of, milters
from relay.postfix.settings import MasterService, PostfixFault, split_list

SIGNS = re.compile(r"dkim|:8891\b|:12301\b", re.IGNORECASE)
"""Names and usual ports of milters that sign. One that also detects spam (rspamd) belongs in front of the relay."""


def around_the_filter(flow: MailFlow) -> Iterator[PostfixFault]:
    """Milters in front of a content filter that belong behind it, or run at both places."""
    outgoing = flow.side("outgoing")
    if outgoing is None or not outgoing.filters:
        return
    for back in outgoing.reinjections:
        behind = milters(flow.settings, back)
        for source in flow.sources:
            before = milters(flow.settings, source)
            if any(map(SIGNS.search, before)) and not (_relay_signs(flow) or any(map(SIGNS.search, behind))):
                yield _signed_too_early(flow, source, f"give it to {back.key} (smtpd_milters, no no_milters) instead")
            elif twice := [milter for milter in before if milter in behind]:
                yield flow.settings.of("receive_override_options", back).fault(
                    "milters-twice",
                    f"{', '.join(twice)} runs for what comes in by {source.key}, and again behind the relay",
                    f"add no_milters to receive_override_options of {back.key}; one that signs belongs there, not here",
                )


def in_order(flow: MailFlow) -> Iterator[PostfixFault]:
    """A signer runs before the relay's milter, and signs the original instead of the sealed form."""
    outgoing = flow.side("outgoing")
    if outgoing is None or _relay_signs(flow):
        return
    for source in flow.sources:
        running = milters(flow.settings, source)
        ours = [number for number, each in enumerate(running) if is_milter_of(flow.settings, outgoing.direction, each)]
        if ours and any(map(SIGNS.search, running[: ours[0]])):
            yield _signed_too_early(flow, source, "let it stand behind the relay's milter")


def let_pass(flow: MailFlow) -> Iterator[PostfixFault]:
    """Mail passes instead of waiting when the relay's milter does not answer."""
    settings = flow.settings
    for source in flow.sources:
        if not any(flow.is_asked(side, source) for side in flow.sides):
            continue
        action = settings.of("milter_default_action", source)
        actions = {action.value}
        for item in split_list(settings.value(_parameter(source), source)):
            if own := re.search(r"default_action\s*=\s*(\w+)", item):
                actions.add(own[1])
        remedy = settings.of("milter_default_action").to("tempfail")
        if "accept" in actions:
            text = "mail goes on in clear, and unopened, when the relay does not answer"
            yield action.fault("milter-lets-pass", text, remedy)
        elif actions - {"tempfail", "quarantine"}:
            yield action.fault("milter-refuses", "mail is refused for good when the relay does not answer", remedy)
        longest = max(side.direction.timeout for side in flow.sides)
        timeout = settings.of("milter_content_timeout", source)
        if timeout.seconds < longest:
            text = f"Postfix gives up before the relay may answer (timeout is {longest:.0f} s in relay.toml)"
            yield timeout.fault("impatient", text, settings.of("milter_content_timeout").to(f"{longest:.0f}s"))


def _relay_signs(flow: MailFlow) -> bool:
    """Whether the relay signs; then a signer in front of it correctly signs the originals (deploy/dkim)."""
    return flow.config.dkim is not None and bool(flow.config.dkim.keys)


def _signed_too_early(flow: MailFlow, source: MasterService, remedy: str) -> PostfixFault:
    return flow.settings.of(_parameter(source), source).fault(
        "dkim-before-filter",
        f"what comes in by {source.key} is signed before the relay seals it, so that sealed mail leaves without a "
        "DKIM signature",
        remedy,
    )


def _parameter(service: MasterService) -> str:
    return "smtpd_milters" if service.command == "smtpd" else "non_smtpd_milters"
