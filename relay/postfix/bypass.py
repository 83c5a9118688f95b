"""Rules against mail that bypasses the relay in clear: by other services, bounces, fallbacks, or added recipients.
Standard: FILTER_README, postconf(5), aliases(5), local(8), cleanup(8), access(5), header_checks(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from relay.mail import domain_of
from relay.postfix.flow import MailFlow, RelayDirection, destination, listens
from relay.postfix.settings import MasterService, PostfixFault, Setting, split_list
from relay.postfix.tables import Tables, logical_lines

ROUTES = ("allow_percent_hack", "swap_bangpath", "resolve_dequoted_address")
COPIES = ("always_bcc", "sender_bcc_maps", "recipient_bcc_maps")
CHECKS = ("header_checks", "mime_header_checks", "nested_header_checks", "body_checks", "milter_header_checks")
MAPS = ("virtual_alias_maps", "canonical_maps", "recipient_canonical_maps", "sender_canonical_maps", "relocated_maps")
NOBODY = "anybody@nowhere.invalid"
"""An address in no table."""
OWN_DOMAINS = ("mydestination", "virtual_alias_domains", "virtual_mailbox_domains")
FILTERLESS_MAIL = ("bounce", "defer", "trace")
SAMPLE = "From: MAILER-DAEMON (Mail Delivery System)"
"""A field of every bounce."""
RESTRICTIONS = ("client", "helo", "sender", "relay", "recipient", "data", "end_of_data", "etrn")
ENVIRONMENTS = ("import_environment", "export_environment")
"""Environment of Postfix's processes, and of the commands that these run."""
_ACTION = re.compile(r"(?:^|[\s{])(REDIRECT|BCC|FILTER)\s+([^\s},]+)", re.IGNORECASE | re.MULTILINE)
_NO_ADDRESS = ("|", "/", '"')


def services_past(flow: MailFlow) -> Iterator[PostfixFault]:
    """A service's mail bypasses the filter that others use."""
    outgoing, incoming = flow.watched, flow.side("incoming")
    if outgoing is None:
        return
    through_incoming = [each for each in incoming.reinjections if each not in outgoing.reinjections] if incoming else []
    for service in (*flow.sources, *through_incoming):
        if not flow.leads_to(service):
            yield PostfixFault(
                "bypass",
                f"master.cf {service.key}",
                "what comes in by it does not go through the relay and leaves in clear",
                "take its own content_filter, smtpd_proxy_filter, no_milters and milters out, and smtpd_milter_maps: "
                "then those of main.cf hold",
            )


def misread(flow: MailFlow) -> Iterator[PostfixFault]:
    """postconf and Postfix read an option of a service differently."""
    for service in flow.settings.services if flow.watched else ():
        if service.misread:
            yield PostfixFault(
                "bypass",
                f"master.cf {service.key}",
                "postconf reads one of its options otherwise than Postfix does, so that its mail may leave in clear",
                "write each as `-o name=value`, with a blank behind -o",
            )


def elsewhere(flow: MailFlow) -> Iterator[PostfixFault]:
    """Postfix's processes read the directory in MAIL_CONFIG, by which postfix(1) names this one."""
    settings = flow.settings
    text = "processes of Postfix read another directory by it, whatever this one says, and mail leaves in clear"
    for name in ENVIRONMENTS:
        for service in (None, *(each for each in settings.services if name in each.overrides)):
            setting = settings.of(name, service)
            names = [item.strip("{} ").partition("=")[::2] for item in split_list(setting.value)]
            of_directory = [value for variable, value in names if variable.strip() == "MAIL_CONFIG"]
            lacks = service is None and name == "import_environment" and not of_directory
            if lacks or any(of_directory):
                yield setting.fault("bypass", text, "name MAIL_CONFIG in it, without a value, as by default")


def second_ways_out(flow: MailFlow) -> Iterator[PostfixFault]:
    """Mail goes elsewhere instead of waiting when the relay does not answer."""
    for side in flow.sides:
        for transport in side.transports.values():
            fallback = flow.settings.of(f"{transport.command}_fallback_relay", transport)
            if fallback.value:
                text = "when the relay does not answer, mail goes there, past it and in clear"
                yield fallback.fault("fallback", text, fallback.to(""))
        if len(side.filters) < len(side.ways):
            for name in ("sender_dependent_relayhost_maps", "sender_dependent_default_transport_maps"):
                setting = flow.settings.of(name)
                if setting.value:
                    text = "mail of these senders goes another way than relayhost, past the relay and in clear"
                    yield setting.fault("bypass", text, setting.to(""))


def answers_changed(flow: MailFlow) -> Iterator[PostfixFault]:
    """Postfix changes the relay's 4xx, by which it keeps a mail: with 2xx the mail is forgotten, with 5xx bounced."""
    for side in flow.sides:
        for transport in side.transports.values():
            for name in ("reply_filter", "delivery_status_filter"):
                setting = flow.settings.of(f"{transport.command}_{name}", transport)
                if setting.value:
                    text = "Postfix takes the relay's answers for others: mail that the relay holds may BE LOST"
                    yield setting.fault("answers-changed", text, setting.to(""))


def commands_changed(flow: MailFlow) -> Iterator[PostfixFault]:
    """smtpd replaces commands, so that mail which the relay has sealed for one recipient is given to another."""
    for service in (each for each in flow.settings.services if each.command == "smtpd"):
        setting = flow.settings.of("smtpd_command_filter", service)
        if setting.value:
            text = (
                "Postfix replaces commands that it hears, and may so give sealed mail to others than it is sealed for"
            )
            yield setting.fault("commands-changed", text, setting.to(""))


def routes(flow: MailFlow) -> Iterator[PostfixFault]:
    """Postfix forwards to other sites mail that the relay took for another domain's."""
    outgoing, settings = flow.side("outgoing"), flow.settings
    if outgoing is None or not (outgoing.ways or outgoing.by_milter):
        return
    rewrite = settings.service(settings.value("rewrite_service_name"), "unix")
    for setting in (settings.of(name, rewrite) for name in ROUTES):
        if setting.value != "no":
            yield setting.fault(
                "routes",
                "Postfix takes local parts such as ben%bob.example, bob.example!ben or "
                '"ben@bob.example" for routes, and sends such mail to bob.example whatever the relay made of it',
                settings.of(setting.name).to("no"),
            )


def copies(flow: MailFlow) -> Iterator[PostfixFault]:
    """Postfix adds recipients that the relay, as a milter, does not see."""
    outgoing, settings = flow.side("outgoing"), flow.settings
    if outgoing is None or not outgoing.by_milter:
        return
    asking = [each for each in flow.sources if flow.is_asked(outgoing, each)]
    for service in (*asking, *outgoing.reinjections):
        if "no_address_mappings" in settings.of("receive_override_options", service).words:
            continue
        cleanup = settings.service(settings.value("cleanup_service_name", service), "unix")
        for setting in (settings.of(name, cleanup) for name in COPIES):
            if setting.value:
                yield setting.fault(
                    "copies",
                    "Postfix adds these recipients after the relay's milter has decided: they get the mail in clear, "
                    "or sealed for somebody else, and twice where recipients need different protection",
                    f"{settings.of(setting.name).to('')}; who needs copies takes a content filter",
                )


def dot_forward(flow: MailFlow) -> Iterator[PostfixFault]:
    """Users of local(8) can forward to other sites behind the relay."""
    settings = flow.settings
    for setting in _each_has(flow, "local", "forward_path") if flow.watched else ():
        if setting.value:
            yield setting.fault(
                "forward-bypass",
                "what a user's .forward file sends on starts behind the relay and leaves in clear",
                f"{settings.of('forward_path').to('')}; commands such as vacation(1) go into /etc/aliases",
            )


async def bounces_past(flow: MailFlow, tables: Tables) -> list[PostfixFault]:
    """Content filters do not see Postfix's own mail, and bounces quote the original."""
    outgoing = flow.watched
    if outgoing is None:
        return []
    settings, faults = flow.settings, []
    for name in FILTERLESS_MAIL:
        service = settings.service(name, "unix")
        if service is None or await _filtered(flow, tables, outgoing, service):
            continue
        octets = settings.of("bounce_size_limit", service).number
        faults.append(
            PostfixFault(
                "bounces-bypass",
                f"master.cf {service.key}",
                f"notices that Postfix makes go past the relay, with up to {octets} bytes of the mail in clear",
                "set its cleanup_service_name and internal_mail_filter_classes as deploy/postfix/outgoing-lmtp says",
            )
        )
    return faults


async def aliases_past(flow: MailFlow, tables: Tables) -> list[PostfixFault]:
    """Forwarding by aliases(5) happens behind the relay; if that is a milter, forwarding by maps of cleanup(8) too."""
    outgoing = flow.watched
    if outgoing is None:
        return []
    behind = [("local", "alias_maps", "postalias")]
    remedy = "forward with virtual_alias_maps, which work in front of it"
    if not outgoing.filters:
        maps = ("virtual_alias_maps", "canonical_maps", "recipient_canonical_maps")
        behind += [("cleanup", name, "postmap") for name in maps]
        remedy = "let users give such mail the address it goes to, or take a content filter instead of the milter"
    faults = []
    for setting, program in ((each, program) for *of, program in behind for each in _each_has(flow, *of)):
        for table in split_list(setting.value):
            targets = await _alias_targets(tables, program, table)
            if targets is None and table not in tables.unread:
                text = f"{table} cannot be listed; what it sends on to another site leaves behind the relay, in clear"
                listable = f"use a table that can be listed (hash, lmdb, texthash); {remedy}"
                faults.append(setting.fault("aliases-unseen", text, listable))
            elif outside := _outside(flow, targets or []):
                faults.append(_forwards(setting, table, outside, remedy))
    relays = ((each, _outside(flow, [each.value])) for each in _each_has(flow, "local", "luser_relay"))
    return [*faults, *(_forwards(setting, "it", outside, remedy) for setting, outside in relays if outside)]


async def actions(flow: MailFlow, tables: Tables) -> list[PostfixFault]:
    """Actions of access tables and header checks that change a mail's route: REDIRECT and FILTER override the content
    filter.
    """
    outgoing = flow.watched
    if outgoing is None:
        return []
    faults = []
    for where, table in dict.fromkeys((*tables_of_fields(flow), *tables_of_access(flow))):
        lines = logical_lines(await tables.text(table))
        for verb, target in (found for line in lines for found in _ACTION.findall(line)):
            if _harmless(flow, outgoing, verb.upper(), target):
                continue
            faults.append(
                PostfixFault(
                    "action-bypass",
                    where,
                    f"{verb.upper()} {target} in {table} leads mail past the relay, in clear",
                    "use virtual_alias_maps or transport settings in front of it, or take the action out",
                )
            )
    return faults


async def everybody_mapped(flow: MailFlow, tables: Tables) -> list[PostfixFault]:
    """A table that has an answer for an address that is in no table has one for everybody."""
    settings, faults = flow.settings, dict[PostfixFault, None]()
    for source in (*flow.sources, *(each for side in flow.sides for each in side.reinjections)):
        cleanup = settings.service(settings.value("cleanup_service_name", source), "unix")
        for setting in (settings.of(name, cleanup) for name in MAPS):
            for table in split_list(setting.value):
                if to := (await tables.answers(table, [NOBODY])).get(NOBODY):
                    text = f"{table} gives everybody's mail to {to}, or refuses it: it does not go where it should"
                    faults[setting.fault("mapped-everybody", text, "name in it the addresses that are meant")] = None
    return list(faults)


async def peers_at_home(flow: MailFlow, tables: Tables) -> list[PostfixFault]:
    """Postfix delivers here what is sealed for a peer."""
    faults, peers = [], [domain for peer in flow.config.peers.values() for domain in peer.domains]
    for setting in (flow.settings.of(name) for name in OWN_DOMAINS):
        for domain in sorted(await among(setting, tables, peers)):
            text = f"{domain} is a peer's: Postfix delivers its sealed mail here, or refuses it, and it IS LOST"
            faults.append(setting.fault("peer-is-local", text, "take the domain out"))
    return faults


async def among(setting: Setting, tables: Tables, domains: Sequence[str]) -> set[str]:
    """Those of the domains that this list has, by itself, by its files or by its tables."""
    words = split_list(setting.value)
    for file in [each for each in words if each.startswith("/")]:
        lines = tables.file(Path(file), file).splitlines()
        words += [word for line in lines if not line.startswith("#") for word in split_list(line)]
    answers = [await tables.answers(each, domains) for each in words if ":" in each]
    return {each.lower() for each in words}.union(*answers).intersection(domains)


async def _filtered(flow: MailFlow, tables: Tables, outgoing: RelayDirection, service: MasterService) -> bool:
    """Whether this service's notices go through the relay, or their route is unreadable."""
    settings = flow.settings
    cleanup = settings.service(settings.value("cleanup_service_name", service), "unix")
    if cleanup is None or "bounce" not in settings.of("internal_mail_filter_classes", service).words:
        return False
    if flow.is_asked(outgoing, cleanup):
        return True
    for table in split_list(settings.value("header_checks", cleanup)):
        verb, _, target = (await tables.look_up(table, SAMPLE)).strip().partition(" ")
        found = destination(target.strip())
        if (verb.upper() == "FILTER" and found and listens(outgoing.direction, found[1])) or table in tables.unread:
            return True
    return False


def _harmless(flow: MailFlow, outgoing: RelayDirection, verb: str, target: str) -> bool:
    """Whether an action keeps the mail's route, leads it to the relay, or applies to sealed mail."""
    if "$" in target:
        return False
    if verb == "FILTER":
        parsed = destination(target)
        to_relay = parsed is not None and listens(outgoing.direction, parsed[1]) is not None
        return to_relay or ":" not in target or not outgoing.filters
    in_front = verb == "BCC" and bool(outgoing.filters)
    return in_front or not _outside(flow, [target])


def tables_of_fields(flow: MailFlow) -> Iterator[tuple[str, str]]:
    """Each table with actions on header fields or body lines (header_checks(5)), and its place."""
    settings = flow.settings
    for source in flow.sources:
        cleanup = settings.service(settings.value("cleanup_service_name", source), "unix")
        for setting in (settings.of(name, cleanup) for name in CHECKS):
            yield from ((setting.where, table) for table in split_list(setting.value))


def tables_of_access(flow: MailFlow) -> Iterator[tuple[str, str]]:
    """Each table with actions on clients and addresses (access(5)), and its place."""
    settings = flow.settings
    for source in flow.sources:
        classes = split_list(settings.value("smtpd_restriction_classes", source))
        lists = (*(f"smtpd_{kind}_restrictions" for kind in RESTRICTIONS), *classes)
        for setting in (settings.of(name, source) for name in lists if source.command == "smtpd"):
            words = split_list(setting.value)
            for before, word in zip(["", *words], words, strict=False):
                if ":" in word and before.lower() != "check_policy_service":
                    yield setting.where, word


def _each_has(flow: MailFlow, command: str, name: str) -> list[Setting]:
    """A setting of each service that runs this program."""
    settings = flow.settings
    return [settings.of(name, each) for each in settings.services if each.command == command]


def _forwards(setting: Setting, table: str, outside: list[str], remedy: str) -> PostfixFault:
    shown = ", ".join(outside[:3]) + (", ..." if len(outside) > 3 else "")
    text = f"{table} forwards to {shown}: what aliases send on starts behind the relay and leaves in clear"
    return setting.fault("aliases-bypass", text, remedy)


def _outside(flow: MailFlow, targets: list[str]) -> list[str]:
    """The addresses outside this site's domains."""
    own = {*flow.config.site.domains, *flow.settings.of("mydestination").words}
    return [target for target in targets if domain_of(target) and domain_of(target) not in own]


async def _alias_targets(tables: Tables, program: str, table: str) -> list[str] | None:
    """The addresses with a domain in an alias table; None if it cannot be listed."""
    listed = await tables.listed(table, program)
    if listed is None:
        return None
    targets: list[str] = []
    for line in listed.splitlines():
        for target in re.split(r"[,\s]+", line.partition("\t")[2]):
            included = target.startswith(":include:")
            targets += _included(tables.file(Path(target[9:]), table)) if included else [target]
    return [target for target in targets if domain_of(target) and not target.startswith(_NO_ADDRESS)]


def _included(text: str) -> list[str]:
    """The addresses in an alias's include file."""
    return [word for line in text.splitlines() if not line.startswith("#") for word in re.split(r"[,\s]+", line)]
