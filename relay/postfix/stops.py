"""Rules on mail that Postfix itself holds, refuses or discards, unseen by the relay.
Standard: postconf(5), defer_transports; header_checks(5) and access(5). Tables are queried as Postfix does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from relay.files.commands import command
from relay.postfix.bypass import NOBODY, RESTRICTIONS, tables_of_access, tables_of_fields
from relay.postfix.flow import PROTOCOLS, MailFlow, is_loopback, service_address
from relay.postfix.settings import MasterService, PostfixFault, split_list
from relay.postfix.tables import Tables
from relay.postfix.transports import TRANSPORTS

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
"""Fields without which nobody can open it."""
SEALED_FIELDS = frozenset(each.partition(":")[0].lower() for each in SAYS_SEALED)
SHORTEST = {"header_size_limit": 4096, "line_length_limit": 998}
"""Minimum lengths, in bytes: of a field with a long signature, and of a line (RFC 5322, 2.1.1)."""
TAKE_HEADERS = ("cleanup", "smtpd", "pickup", "qmqpd")
CHECKS_ON_THE_WAY = ("header_checks", "mime_header_checks", "nested_header_checks", "body_checks")
"""Checks of smtp(8) and lmtp(8) that can change the text they send."""
CHANGES = re.compile(r"IGNORE|REPLACE|PREPEND|STRIP", re.IGNORECASE)
REMOVES = re.compile(r"IGNORE|REPLACE|STRIP", re.IGNORECASE)
NEEDED = tuple(f"{each}_service_name" for each in ("cleanup", "queue", "rewrite", "bounce", "defer"))
"""Settings that name the services without which no mail moves."""
SLOW_S = 5
"""Maximum pause between two mails to one destination, in seconds: bulk senders use one or two."""
RETRIES = ("queue_run_delay", "minimal_backoff_time", "maximal_backoff_time")
RETRY_S = 4 * 3600
"""Maximum pause before waiting mail is retried, in seconds; Postfix's default is 4000 s."""
PATIENT_S = 86_400
"""Minimum time that mail waits before it is returned, in seconds; Postfix's default is five days."""
OWN_CLIENTS = ("permit_mynetworks", "permit_sasl_authenticated", "permit_inet_interfaces")
HERE = ("127.", "[::1]", "[::ffff:127.")
ADDRESSES = (NOBODY,)
"""An action on it applies to everybody. Refusals are the normal use of such tables."""
STOPS = re.compile(r"HOLD|REJECT|[45]\d\d\b", re.IGNORECASE)
STOPS_EVERYBODY = re.compile(r"HOLD", re.IGNORECASE)
DISCARDS = re.compile(r"DISCARD", re.IGNORECASE)


def transports_deferred(flow: MailFlow) -> Iterator[PostfixFault]:
    """Mail for these transports is only tried by `postqueue -f`."""
    managers = [each for each in flow.settings.services if each.command in ("qmgr", "oqmgr")]
    for setting in (flow.settings.of("defer_transports", each) for each in managers):
        if setting.value:
            text = "Postfix delivers no mail by these transports: it waits in the queue, and the relay does not see it"
            yield setting.fault("transports-deferred", text, setting.to(""))


def slowed(flow: MailFlow) -> Iterator[PostfixFault]:
    """Postfix pauses between two mails, and the queue grows."""
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
    """Mail that the relay holds for an hour without keys is returned."""
    for setting in map(flow.settings.of, ("maximal_queue_lifetime", "bounce_queue_lifetime")):
        if setting.seconds < PATIENT_S:
            text = "mail that the relay holds, until there are keys for instance, is returned and not tried again"
            yield setting.fault("given-up", text, command("postconf", "-X", setting.name))


def disabled(flow: MailFlow) -> Iterator[PostfixFault]:
    """master(8) does not run a required service; only listeners may be missing."""
    setting, listeners = flow.settings.of("master_service_disable"), [each.key for each in flow.sources]
    if any(each not in listeners for each in split_list(setting.value)):
        text = "Postfix does not run these services: mail that needs one waits, and the relay does not see it"
        yield setting.fault("service-disabled", text, setting.to(""))
    for name in (flow.settings.value(each) for each in NEEDED):
        if not any(flow.settings.service(name, kind) for kind in ("unix", "fifo")):
            text = f"there is no service {name}/unix: mail waits, and the relay does not see it"
            yield PostfixFault("service-disabled", f"{flow.settings.directory}/master.cf", text, "put its line back")


def everybody_refused(flow: MailFlow) -> Iterator[PostfixFault]:
    """A list that begins with a refusal refuses everybody, even after words about this site's own clients."""
    for service in (each for each in flow.sources if each.command == "smtpd" and flow.leads_to(each)):
        for kind in RESTRICTIONS:
            setting = flow.settings.of(f"smtpd_{kind}_restrictions", service)
            own = OWN_CLIENTS if _strangers_alone(flow, service) else ()
            others = [word for word in setting.words if word not in own]
            if kind != "etrn" and others[:1] in (["reject"], ["defer"]):
                text = f"{service.key} takes no mail from anybody, and the relay does not see that"
                yield setting.fault("action-stops", text, "take it out, or let it stand last")


def nowhere_to_arrive(flow: MailFlow) -> Iterator[PostfixFault]:
    """No other host reaches a service that takes arriving mail, so peers' mail waits in their queues."""
    takers = [each for each in flow.sources if each.command == "smtpd" and "incoming" in flow.leads_to(each)]
    setting = flow.settings.of("inet_interfaces")
    if not takers or flow.settings.value("proxy_interfaces"):
        return
    for service in takers:
        host = (service_address(service) or ("",))[0]
        places = [host] if host else split_list(setting.value)
        if service.type != "inet" or not all(is_loopback(each) or each == "loopback-only" for each in places):
            return
    yield setting.fault(
        "no-arrivals",
        "only this host reaches the services that take arriving mail: mail from peers waits with them",
        f"{setting.to('all')}; or if a proxy on this host hands it on: name its address in proxy_interfaces",
    )


def _strangers_alone(flow: MailFlow, service: MasterService) -> bool:
    """Whether arriving mail comes from strangers alone: nobody logs in, and no other host is in mynetworks."""
    if "incoming" not in flow.leads_to(service) or flow.settings.value("smtpd_sasl_auth_enable", service) == "yes":
        return False
    return all(each.startswith(HERE) for each in split_list(flow.settings.value("mynetworks", service)))


def header_cut(flow: MailFlow) -> Iterator[PostfixFault]:
    """Postfix itself cuts, folds or drops fields that say that mail is sealed."""
    text = "sealed mail loses what says that it is sealed: it arrives, and nobody opens it"
    for service in (each for each in flow.settings.services if each.command in TAKE_HEADERS):
        for name, least in SHORTEST.items():
            setting = flow.settings.of(name, service)
            if setting.number < least:
                yield setting.fault("sealed-changed", text, command("postconf", "-X", name))
        dropped = flow.settings.of("message_drop_headers", service)
        if not SEALED_FIELDS.isdisjoint(dropped.words):
            yield dropped.fault("sealed-changed", text, command("postconf", "-X", dropped.name))


async def changed_on_the_way(flow: MailFlow, tables: Tables) -> list[PostfixFault]:
    """Checks of smtp(8) and lmtp(8) change sealed mail, or mail to be sealed; a body line may match anything."""
    faults = []
    for service in (each for each in flow.settings.services if each.command in PROTOCOLS):
        for kind in CHECKS_ON_THE_WAY:
            setting = flow.settings.of(f"{service.command}_{kind}", service)
            for table in split_list(setting.value):
                await tables.text(table)  # records tables that cannot be read or listed
                said = (await tables.answers(table, SAYS_SEALED)).values()
                if kind == "body_checks" or any(CHANGES.match(each) for each in said):
                    text = f"{table} changes sealed mail on its way, or empties it: it IS LOST, and nobody is told"
                    remedy = f"take it out; {kind} work in front of the relay"
                    faults.append(setting.fault("sealed-changed", text, remedy))
    return faults


async def actions(flow: MailFlow, tables: Tables) -> list[PostfixFault]:
    """Header checks act on every sealed mail, or access tables on everybody's."""
    faults = []
    for where, table in dict.fromkeys(tables_of_fields(flow)):
        for action in sorted(filter(REMOVES.match, (await tables.answers(table, SAYS_SEALED)).values())):
            text = f"{action} in {table} takes away what says that mail is sealed: it arrives, and nobody opens it"
            faults.append(PostfixFault("sealed-changed", where, text, "take the action out"))
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
