"""Rules on scanners: they must read leaving mail before it is sealed, and arriving mail once it is opened.
Standard: FILTER_README, MILTER_README; no scanner has seen a virus in a sealed mail.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from relay.postfix import ours
from relay.postfix.flow import MailFlow, foreign_filter, is_milter_of, milters
from relay.postfix.milters import SIGNS
from relay.postfix.settings import PostfixFault

READS = re.compile(r"rspamd|clam|amavis|spam|virus|:1133\d\b", re.IGNORECASE)
"""Names and usual ports of milters that read content."""
PASSES = "what a virus scanner refuses in clear is delivered when a peer has sealed it"


def opened_not_filtered(flow: MailFlow) -> Iterator[PostfixFault]:
    """Opened mail bypasses the content filter that reads mail in clear."""
    incoming = flow.side("incoming")
    scanners = list(dict.fromkeys(filter(None, (foreign_filter(flow, each) for each in flow.sources))))
    for back in incoming.reinjections if incoming is not None and scanners else ():
        if not foreign_filter(flow, back):
            setting = flow.settings.of("content_filter", back)
            text = f"{scanners[0]} does not see opened mail: {PASSES}"
            yield setting.fault("opened-unscanned", text, setting.to(scanners[0]))


def opened_not_shown(flow: MailFlow) -> Iterator[PostfixFault]:
    """Milters see sealed arriving mail, and not the opened mail."""
    incoming, settings = flow.side("incoming"), flow.settings
    if incoming is None:
        return
    for source in flow.sources:
        running = milters(settings, source)
        asked = [number for number, each in enumerate(running) if is_milter_of(settings, incoming.direction, each)]
        if "incoming" not in flow.leads_to(source):
            continue
        foreign = [each for each in running if ours.is_foreign(settings, flow.config, each) and not SIGNS.search(each)]
        early = [each for each in foreign if asked and running.index(each) < asked[0]]
        if early:
            yield settings.of("smtpd_milters", source).fault(
                "opened-unscanned",
                f"{', '.join(early)} sees mail before the relay opens it: {PASSES}",
                "let it stand behind the relay's first milter, and in front of the second",
            )
        for back in incoming.reinjections:
            if missing := [each for each in foreign if each not in milters(settings, back)]:
                override = settings.of("receive_override_options", back)
                hidden = "no_milters" in override.words
                yield (override if hidden else settings.of("smtpd_milters", back)).fault(
                    "opened-unscanned",
                    f"{', '.join(missing)} does not see opened mail: {PASSES}",
                    f"take no_milters out of {back.key}" if hidden else f"name it in smtpd_milters of {back.key}",
                )


def leaving_sealed(flow: MailFlow) -> Iterator[PostfixFault]:
    """If the relay is a milter, milters behind it see sealed mail."""
    outgoing, settings = flow.side("outgoing"), flow.settings
    if outgoing is None:
        return
    for source in flow.sources:
        running = milters(settings, source)
        places = [number for number, each in enumerate(running) if is_milter_of(settings, outgoing.direction, each)]
        if not places:
            continue
        name = "smtpd_milters" if source.command == "smtpd" else "non_smtpd_milters"
        late = [each for each in running[places[0] :] if READS.search(each) and each not in running[: places[0]]]
        text = "sees what leaves only when it is sealed"
        if late:
            yield settings.of(name, source).fault(
                "leaving-unscanned",
                f"{', '.join(late)} {text}",
                "let it stand in front of the milter that seals",
            )
        if value := foreign_filter(flow, source):
            yield settings.of("content_filter", source).fault(
                "leaving-unscanned",
                f"{value} {text}",
                "take `setup --replace --integration content-filter`",
            )
