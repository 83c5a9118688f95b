"""Rules about mail that Postfix itself keeps back, refuses or throws away, so that the relay never hears of it.
Standard: postconf(5), defer_transports; header_checks(5) and access(5). Tables are asked as Postfix asks them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from relay.files.commands import command
from relay.postfix.bypass import RESTRICTIONS, tables_of_access, tables_of_fields
from relay.postfix.content_filter import TRANSPORTS
from relay.postfix.flow import PROTOCOLS, MailFlow
from relay.postfix.settings import PostfixFault, split_list
from relay.postfix.tables import Tables

FIELDS = (
    "Received: from localhost (localhost [127.0.0.1])",
    "From: <anybody@nowhere.invalid>",
    "Subject: [...]",
    "MIME-Version: 1.0",
    'Content-Type: application/pkcs7-mime; smime-type=authEnveloped-data; name="smime.p7m"',
    "Content-Transfer-Encoding: base64",
    'Content-Disposition: attachment; filename="smime.p7m"',
)
"""Fields of every sealed mail (relay/FORMAT.md)."""
SAYS_SEALED = FIELDS[3:]
"""Those without which nobody opens it."""
CHECKS_ON_THE_WAY = ("header_checks", "mime_header_checks", "nested_header_checks", "body_checks")
"""What smtp(8) and lmtp(8) do to the text that they send."""
CHANGES = re.compile(r"IGNORE|REPLACE|PREPEND|STRIP", re.IGNORECASE)
NEEDED = tuple(f"{each}_service_name" for each in ("cleanup", "queue", "rewrite", "bounce", "defer"))
"""Who names the services without which no mail goes anywhere."""
SLOW_S = 5
"""Maximum pause between two mails to one destination, in seconds: who sends in bulk takes one or two."""
RETRIES = ("queue_run_delay", "minimal_backoff_time", "maximal_backoff_time")
RETRY_S = 4 * 3600
"""Maximum pause until mail that waits is tried again, in seconds; Postfix has 4000 s."""
PATIENT_S = 86_400
"""Minimum time for which mail waits before it is given up, in seconds; Postfix has five days."""
ADDRESSES = ("anybody@nowhere.invalid",)
"""An address that no table names: an action on it is one on everybody. Refusals are what such tables are for."""
STOPS = re.compile(r"HOLD|REJECT|[45]\d\d\b", re.IGNORECASE)
STOPS_EVERYBODY = re.compile(r"HOLD", re.IGNORECASE)
DISCARDS = re.compile(r"DISCARD", re.IGNORECASE)


def transports_deferred(flow: MailFlow) -> Iterator[PostfixFault]:
    """Mail for these transports is tried by `postqueue -f` alone."""
    managers = [each for each in flow.settings.services if each.command in ("qmgr", "oqmgr")]
    for setting in (flow.settings.of("defer_transports", each) for each in managers):
        if setting.value:
            text = "Postfix delivers no mail by these transports: it waits in the queue, and the relay does not see it"
            yield setting.fault("transports-deferred", text, setting.to(""))


def slowed(flow: MailFlow) -> Iterator[PostfixFault]:
    """Postfix waits between two mails, and the queue grows."""
    settings = flow.settings
    ways = {name for side in flow.sides for name in side.transports}
    names = sorted(ways | {settings.value(each).partition(":")[0] for each in TRANSPORTS} - {""})
    for manager in (each for each in settings.services if each.command in ("qmgr", "oqmgr")):
        for name in (f"{each}_{kind}_rate_delay" for each in names for kind in ("transport", "destination")):
            setting = settings.of(name, manager)
            if setting.seconds > SLOW_S:
                text = f"after each mail the next one waits {setting.seconds:.0f} s, and the relay does not see it"
                yield setting.fault("slowed", text, settings.of(name).to(0))
    for setting in map(settings.of, RETRIES):
        if setting.seconds > RETRY_S:
            text = f"mail that waits is tried again after {setting.seconds:.0f} s, though the relay takes it sooner"
            yield setting.fault("slowed", text, command("postconf", "-X", setting.name))


def given_up(flow: MailFlow) -> Iterator[PostfixFault]:
    """What the relay holds for an hour without keys is returned instead."""
    for setting in map(flow.settings.of, ("maximal_queue_lifetime", "bounce_queue_lifetime")):
        if setting.seconds < PATIENT_S:
            text = "mail that the relay holds, until there are keys for instance, is returned and not tried again"
            yield setting.fault("given-up", text, command("postconf", "-X", setting.name))


def disabled(flow: MailFlow) -> Iterator[PostfixFault]:
    """master(8) runs no such service; only a listener that takes mail in may be missing."""
    setting, listeners = flow.settings.of("master_service_disable"), [each.key for each in flow.sources]
    if any(each not in listeners for each in split_list(setting.value)):
        text = "Postfix does not run these services: mail that needs one waits, and the relay does not see it"
        yield setting.fault("service-disabled", text, setting.to(""))
    for name in (flow.settings.value(each) for each in NEEDED):
        if not any(flow.settings.service(name, kind) for kind in ("unix", "fifo")):
            text = f"there is no service {name}/unix: mail waits, and the relay does not see it"
            yield PostfixFault("service-disabled", f"{flow.settings.directory}/master.cf", text, "put its line back")


def everybody_refused(flow: MailFlow) -> Iterator[PostfixFault]:
    """A list that begins with a refusal refuses everybody."""
    for service in (each for each in flow.sources if each.command == "smtpd" and flow.leads_to(each)):
        for kind in RESTRICTIONS:
            setting = flow.settings.of(f"smtpd_{kind}_restrictions", service)
            if kind != "etrn" and setting.words[:1] in (["reject"], ["defer"]):
                text = f"{service.key} takes no mail from anybody, and the relay does not see that"
                yield setting.fault("action-stops", text, "take it out, or let it stand last")


async def changed_on_the_way(flow: MailFlow, tables: Tables) -> list[PostfixFault]:
    """Checks of smtp(8) and lmtp(8) change what is sealed, or what is to be; lines of bodies look like anything."""
    faults = []
    for service in (each for each in flow.settings.services if each.command in PROTOCOLS):
        for kind in CHECKS_ON_THE_WAY:
            setting = flow.settings.of(f"{service.command}_{kind}", service)
            for table in split_list(setting.value):
                await tables.text(table)  # notes one that nobody can read or list
                said = (await tables.answers(table, SAYS_SEALED)).values()
                if kind == "body_checks" or any(CHANGES.match(each) for each in said):
                    text = f"{table} changes sealed mail on its way, or empties it: it IS LOST, and nobody is told"
                    remedy = f"take it out; {kind} work in front of the relay"
                    faults.append(setting.fault("sealed-changed", text, remedy))
    return faults


async def actions(flow: MailFlow, tables: Tables) -> list[PostfixFault]:
    """What header checks do to every sealed mail, and access tables to everybody's mail."""
    faults = []
    asked = ((tables_of_fields(flow), FIELDS, STOPS), (tables_of_access(flow), ADDRESSES, STOPS_EVERYBODY))
    for places, samples, stops in asked:
        for where, table in dict.fromkeys(places):
            said = set((await tables.answers(table, samples)).values())
            for action in sorted(each for each in said if DISCARDS.match(each)):
                text = f"{action} in {table} throws sealed or all mail away: it IS LOST, and its sender hears 250"
                faults.append(PostfixFault("action-discards", where, text, "take the action out"))
            for action in sorted(each for each in said if stops.match(each)):
                text = (
                    f"{action} in {table} keeps sealed or all mail back, or refuses it, and the relay does not see it"
                )
                faults.append(PostfixFault("action-stops", where, text, "take the action out"))
    return faults
