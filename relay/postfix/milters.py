"""Rules about milters: what signs must see the sealed form, nothing runs twice, and none lets mail pass in clear.
Standard: MILTER_README, RFC 6376 (a signature holds for the message that leaves, which is the sealed one).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from relay.postfix.fault import Fault
from relay.postfix.picture import Picture, Side, is_milter_of, milters
from relay.postfix.settings import Service, split_list

SIGNS = re.compile(r"dkim|rspamd|:8891\b|:12301\b|:11332\b", re.IGNORECASE)
"""Names and usual ports of milters that sign."""


def around_the_filter(picture: Picture) -> Iterator[Fault]:
    """Milters in front of a content filter against those behind it."""
    outgoing = picture.side("outgoing")
    if outgoing is None or not outgoing.filters:
        return
    for back in outgoing.reinjections:
        behind = milters(picture.settings, back)
        for source in picture.sources:
            before = milters(picture.settings, source)
            if any(map(SIGNS.search, before)) and not (_relay_signs(picture) or any(map(SIGNS.search, behind))):
                yield _signed_too_early(
                    picture, source, f"give it to {back.key} (smtpd_milters, no no_milters) instead"
                )
            elif twice := [milter for milter in before if milter in behind]:
                yield Fault(
                    "milters-twice",
                    picture.settings.where("receive_override_options", back),
                    f"{', '.join(twice)} runs for what comes in by {source.key}, and again behind the relay",
                    f"add no_milters to receive_override_options of {back.key}; one that signs belongs there, not here",
                )


def in_order(picture: Picture) -> Iterator[Fault]:
    """Where the relay itself is a milter, what signs comes after it."""
    outgoing = picture.side("outgoing")
    for source in picture.sources if outgoing and not _relay_signs(picture) else ():
        running = milters(picture.settings, source)
        ours = [number for number, each in enumerate(running) if _is_ours(picture, outgoing, each)]
        if ours and any(map(SIGNS.search, running[: ours[0]])):
            yield _signed_too_early(picture, source, "let it stand behind the relay's milter")


def let_pass(picture: Picture) -> Iterator[Fault]:
    """When the relay's milter does not answer, mail must wait."""
    settings = picture.settings
    for source in picture.sources:
        if not any(_is_ours(picture, side, each) for side in picture.sides for each in milters(settings, source)):
            continue
        actions = {settings.value("milter_default_action", source)}
        for item in split_list(settings.value(_parameter(source), source)):
            if own := re.search(r"default_action\s*=\s*(\w+)", item):
                actions.add(own[1])
        if bad := actions - {"tempfail", "quarantine"}:
            yield Fault(
                "milter-lets-pass",
                settings.where("milter_default_action", source),
                "mail goes on in clear, and unopened, when the relay does not answer"
                if "accept" in bad
                else "mail is refused for good when the relay does not answer",
                "postconf -e 'milter_default_action = tempfail'",
            )
        longest = max(side.direction.timeout for side in picture.sides)
        if settings.seconds("milter_content_timeout", source) < longest:
            yield Fault(
                "impatient",
                settings.where("milter_content_timeout", source),
                f"Postfix gives up before the relay may answer (timeout is {longest:.0f} s in relay.toml)",
                f"postconf -e 'milter_content_timeout = {longest:.0f}s'",
            )


def _relay_signs(picture: Picture) -> bool:
    """Then a signer in front of it is that of the originals, which is right (deploy/dkim)."""
    return picture.config.dkim is not None and bool(picture.config.dkim.keys)


def _signed_too_early(picture: Picture, source: Service, remedy: str) -> Fault:
    return Fault(
        "dkim-before-filter",
        picture.settings.where(_parameter(source), source),
        f"what comes in by {source.key} is signed before the relay seals it, so that sealed mail leaves without a "
        "DKIM signature",
        remedy,
    )


def _is_ours(picture: Picture, side: Side | None, milter: str) -> bool:
    return side is not None and is_milter_of(picture.settings, side.direction, milter)


def _parameter(service: Service) -> str:
    return "smtpd_milters" if service.command == "smtpd" else "non_smtpd_milters"
