"""Rules on transports of mail that leaves Postfix behind the relay: none discards or keeps it, or passes a smarthost.
Standard: postconf(5), transport(5), error(8), discard(8).
"""

from __future__ import annotations

from collections.abc import Iterator

from relay.files.commands import command
from relay.postfix.bypass import NOBODY, OWN_DOMAINS, among
from relay.postfix.flow import PROTOCOLS, MailFlow, RelayDirection, destination, foreign_filter, listens
from relay.postfix.settings import PostfixFault, Setting, split_list
from relay.postfix.tables import Tables, logical_lines

TRANSPORTS = ("default_transport", "relay_transport", "local_transport", "virtual_transport", "mailbox_transport")
TO_OTHERS = ("default_transport", "relay_transport")
BY_NAME = ("smtp", "lmtp", "relay", "local", "virtual")
"""Services that deliver mail, and run the program of their name."""
PROGRAMS = {
    **dict.fromkeys(("bounce", "defer", "trace"), ("bounce",)),
    **dict.fromkeys(("error", "retry"), ("error",)),
    **dict.fromkeys(("proxymap", "proxywrite"), ("proxymap",)),
    **{name: (name,) for name in ("pickup", "cleanup", "flush", "showq", "verify", "tlsmgr", "anvil", "scache")},
    "qmgr": ("qmgr", "oqmgr"),
    "rewrite": ("trivial-rewrite",),
}
"""What other services of Postfix's own master.cf run: each has a protocol that no other program speaks."""
KEEPS = "error"
"""The program that returns mail, or has it wait."""
DELIVERS = (*PROTOCOLS, "local", "virtual", KEEPS)
"""Programs that only deliver or bounce mail."""


def lost_behind(flow: MailFlow) -> Iterator[PostfixFault]:
    """A delivering service runs a program that may discard mail. For mailboxes pipe(8) is usual."""
    settings = flow.settings
    for service in settings.services:
        if service.name in BY_NAME and service.type == "unix" and service.command not in DELIVERS:
            text = f"{service.command}(8) gets the mail that this should deliver: it IS LOST, or goes elsewhere"
            yield PostfixFault("transport-lost", f"master.cf {service.key}", text, "let it run what its name says")
    rewrite = settings.service(settings.value("rewrite_service_name"), "unix")
    filters = (settings.of("content_filter", each) for each in flow.sources if foreign_filter(flow, each))
    for setting in (*filters, *(settings.of(name, rewrite) for name in TRANSPORTS)):
        transport = settings.service(setting.value.partition(":")[0], "unix")
        if transport is None or transport.name in BY_NAME:
            continue
        if transport.command == "discard" or (setting.name in TO_OTHERS and transport.command not in DELIVERS):
            text = f"{transport.command}(8) does not deliver this mail: it IS LOST, or goes elsewhere"
            yield setting.fault("transport-lost", text, "name one that delivers")


def another_program(flow: MailFlow) -> Iterator[PostfixFault]:
    """A service that Postfix itself asks runs another program: mail is lost, or waits."""
    for service in flow.settings.services:
        programs = PROGRAMS.get(service.name, ()) if service.type in ("unix", "fifo") else ()
        if programs and service.command not in programs:
            text = f"{service.command}(8) answers in the place of {programs[0]}(8): mail waits, or IS LOST"
            remedy = f"let it run {programs[0]}, as Postfix's own master.cf has it"
            yield PostfixFault("transport-lost", f"master.cf {service.key}", text, remedy)


def nothing_leaves(flow: MailFlow) -> Iterator[PostfixFault]:
    """All mail to other sites is returned or kept by error(8)."""
    for setting in map(flow.settings.of, TO_OTHERS if flow.side("outgoing") else ()):
        transport = flow.settings.service(setting.value.partition(":")[0], "unix")
        if transport is not None and transport.command == "error":
            text = "mail to other sites, sealed mail too, is returned or waits, and the relay does not see it"
            yield setting.fault("transports-deferred", text, command("postconf", "-X", setting.name))


async def own_returned(flow: MailFlow, tables: Tables) -> list[PostfixFault]:
    """Mail to this site's domains is returned or kept by error(8)."""
    faults, own = [], [*flow.config.site.domains]
    for domains, by in (("mydestination", "local_transport"), ("virtual_mailbox_domains", "virtual_transport")):
        setting = flow.settings.of(by)
        transport = flow.settings.service(setting.value.partition(":")[0], "unix")
        if transport is not None and transport.command == "error":
            for domain in sorted(await among(flow.settings.of(domains), tables, own)):
                text = f"mail to {domain} is returned or waits, opened mail too, and the relay does not see it"
                faults.append(
                    setting.fault(
                        "transports-deferred", text, f"name one that delivers, or take {domain} out of {domains}"
                    )
                )
    return faults


async def by_tables(flow: MailFlow, tables: Tables) -> list[PostfixFault]:
    """A table discards, keeps or returns mail of peers, this site or everybody, or leads it to the relay again."""
    settings, faults = flow.settings, []
    setting = _transport_maps(flow)
    own, peers = [*flow.config.site.domains], [domain for each in flow.config.peers.values() for domain in each.domains]
    keys = {domain: _keys(domain) for domain in (*peers, *own)} | {"": [NOBODY, "*"]}
    asked = [key for those in keys.values() for key in those]
    # Read as a text too: what cannot be listed is reported.
    told = [await tables.answers(table, asked) for table in split_list(setting.value) if await tables.text(table)]
    for domain, those in keys.items():
        to = next((answers[key] for key in those for answers in told if key in answers), "")
        name = to.partition(":")[0]
        transport = settings.service(name, "unix")
        program = transport.command if transport is not None else ""
        whose = f"mail to {domain}" if domain else "everybody's mail"
        remedy = "take the entry out"
        if program == KEEPS or (name and transport is None):
            text = f"{whose} is returned or waits, sealed or opened, and the relay does not see it"
            faults.append(setting.fault("transports-deferred", text, remedy))
        elif program == "discard" or (program and domain not in own and program not in PROTOCOLS):
            text = f"{whose} goes to {program}(8): it IS LOST, or goes elsewhere"
            faults.append(setting.fault("transport-lost", text, remedy))
        elif any(_leads_to(side, to) for side in flow.sides if side.filters):
            text = f"{whose} goes to the relay, from which it comes, in a loop"
            faults.append(setting.fault("loop", text, f"{remedy}: the content filter leads there"))
    return faults


async def past_relayhost(flow: MailFlow, tables: Tables) -> list[PostfixFault]:
    """transport_maps come before relayhost: what they have for another site leaves without the relay."""
    outgoing, setting = flow.side("outgoing"), _transport_maps(flow)
    if outgoing is None or len(outgoing.filters) == len(outgoing.ways):
        return []
    lists = (*OWN_DOMAINS, "relay_domains")
    own = {*flow.config.site.domains, *(word for name in lists for word in flow.settings.of(name).words)}
    faults = []
    for table in split_list(setting.value):
        for line in logical_lines(await tables.text(table)):
            key, _, to = line.replace("\t", " ").strip().partition(" ")
            domain = key.rpartition("@")[2].lower()
            here = any(f".{domain.lstrip('.')}".endswith(f".{each}") for each in own)
            transport = flow.settings.service(to.strip().partition(":")[0], "unix")
            stays = to.strip() == ":" or (transport is not None and transport.command in (KEEPS, "discard"))
            if key and not key.startswith("#") and not (here or stays or _leads_to(outgoing, to)):
                text = f"{key} in {table} leads mail past relayhost, and it leaves in clear"
                faults.append(setting.fault("bypass", text, "take the entry out"))
    return faults


def _transport_maps(flow: MailFlow) -> Setting:
    rewrite = flow.settings.service(flow.settings.value("rewrite_service_name"), "unix")
    return flow.settings.of("transport_maps", rewrite)


def _keys(domain: str) -> list[str]:
    """What Postfix looks for in transport_maps, in its order (transport(5))."""
    labels = domain.split(".")
    return [f"anybody@{domain}", domain, *(f".{'.'.join(labels[start:])}" for start in range(1, len(labels))), "*"]


def _leads_to(side: RelayDirection, to: str) -> bool:
    """Whether a transport and next hop is a listener of this direction."""
    target = destination(to.strip())
    return target is not None and listens(side.direction, target[1]) is not None
