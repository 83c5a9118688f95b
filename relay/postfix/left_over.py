"""Rules on leftovers of another integration in main.cf and master.cf, which lead to ports that the relay has left.
Standard: postconf(5): without its milter Postfix answers 4xx, without its filter all mail waits.
"""

from __future__ import annotations

from collections.abc import Iterator

from relay.postfix import flow, ours
from relay.postfix.flow import MailFlow
from relay.postfix.settings import MasterService, PostfixFault

REMEDY = (
    "run `qumail-relay setup` again, which puts it right, or change relay.toml. After `setup --undo`, which changes "
    "Postfix alone, relay.toml still has the later integration"
)


def filters(mail_flow: MailFlow) -> Iterator[PostfixFault]:
    """Mail is handed to an address that the relay has left."""
    settings = mail_flow.settings
    for name in ("content_filter", "smtpd_proxy_filter", "relayhost"):
        for source in _sources(mail_flow, name):
            if ours.stale_filter(mail_flow.config, settings.value(name, source)):
                text = (
                    "that is a port of the relay's, and by relay.toml it does not listen there: all this mail waits, "
                    "once the relay was restarted with that file"
                )
                yield settings.of(name, source).fault("left-over", text, REMEDY)


def milters(mail_flow: MailFlow) -> Iterator[PostfixFault]:
    """A milter is asked at an address that the relay has left."""
    settings = mail_flow.settings
    for source in mail_flow.sources:
        name = "smtpd_milters" if source.command == "smtpd" else "non_smtpd_milters"
        for milter in flow.milters(settings, source):
            if ours.stale_milter(settings, mail_flow.config, milter):
                text = (
                    f"{milter} is a port of the relay's, and by relay.toml it does not listen there: "
                    f"{source.key} answers 451 to all mail, once the relay was restarted with that file"
                )
                yield settings.of(name, source).fault("left-over", text, REMEDY)


def _sources(mail_flow: MailFlow, name: str) -> list[MasterService | None]:
    return [None, *(each for each in mail_flow.sources if name in each.overrides)]
