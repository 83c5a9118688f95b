"""Rules about recipients whom the relay does not hear of: routes in addresses, Postfix's own copies, forwarding.
Standard: postconf(5), aliases(5), local(8), access(5) and header_checks(5) (BCC, FILTER, REDIRECT), cleanup(8).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from relay.errors import ConfigError
from relay.mail import domain_of
from relay.postfix.fault import Fault
from relay.postfix.picture import Picture, Side, destination, is_milter_of, listens, milters
from relay.postfix.settings import Service, command, split_list

ROUTES = ("allow_percent_hack", "swap_bangpath", "resolve_dequoted_address")
COPIES = ("always_bcc", "sender_bcc_maps", "recipient_bcc_maps")
CHECKS = ("header_checks", "mime_header_checks", "nested_header_checks", "body_checks", "milter_header_checks")
RESTRICTIONS = ("client", "helo", "sender", "relay", "recipient", "data", "end_of_data", "etrn")
SEQUENTIAL_TABLES = ("hash", "btree", "lmdb", "cdb", "dbm", "texthash", "inline")
"""The kinds of tables that can be listed."""
TEXT_TABLES = ("regexp", "pcre", "cidr")
"""Those that are files to read, or stand in the setting itself."""
_ACTION = re.compile(r"(?:^|\s)(REDIRECT|BCC|FILTER)\s+([^\s},]+)", re.IGNORECASE | re.MULTILINE)
_NO_ADDRESS = ("|", "/", '"')
MAX_READ = 10_000_000
"""Characters of one file of tables that are looked at."""


def routes(picture: Picture) -> Iterator[Fault]:
    """Postfix sends on, behind the relay, what the relay took for mail to another domain."""
    outgoing, settings = picture.side("outgoing"), picture.settings
    if outgoing is None or not (outgoing.ways or outgoing.by_milter):
        return
    rewrite = settings.service(settings.value("rewrite_service_name"), "unix")
    for name in ROUTES:
        if settings.value(name, rewrite) != "no":
            yield Fault(
                "routes",
                settings.where(name, rewrite),
                "Postfix takes local parts such as ben%bob.example, bob.example!ben or "
                '"ben@bob.example" for routes, and sends such mail to bob.example whatever the relay made of it',
                f"postconf -e '{name} = no'",
            )


def copies(picture: Picture) -> Iterator[Fault]:
    """Where the relay is a milter, it does not hear of the recipients whom Postfix adds."""
    outgoing, settings = picture.side("outgoing"), picture.settings
    if outgoing is None or not outgoing.by_milter:
        return
    asking = [each for each in picture.sources if _asks(picture, outgoing, each)]
    for service in (*asking, *outgoing.reinjections):
        if "no_address_mappings" in settings.words("receive_override_options", service):
            continue
        cleanup = settings.service(settings.value("cleanup_service_name", service), "unix")
        for name in COPIES:
            if settings.value(name, cleanup):
                yield Fault(
                    "copies",
                    settings.where(name, cleanup),
                    "Postfix adds these recipients after the relay's milter has decided: they get the mail in clear, "
                    "or sealed for somebody else, and twice where recipients need different protection",
                    f"postconf -e '{name} ='; who needs copies takes a content filter",
                )


def dot_forward(picture: Picture) -> Iterator[Fault]:
    """Every user of local(8) can forward to another site, behind the relay."""
    outgoing, settings = picture.side("outgoing"), picture.settings
    for service in settings.services if outgoing is not None and outgoing.watched else ():
        if service.command == "local" and settings.value("forward_path", service):
            yield Fault(
                "forward-bypass",
                settings.where("forward_path", service),
                "what a user's .forward file sends on starts behind the relay and leaves in clear",
                "postconf -e 'forward_path ='; commands such as vacation(1) go into /etc/aliases",
            )


async def aliases_past(picture: Picture) -> list[Fault]:
    """Forwarding by aliases(5) starts behind the relay, and that by maps of cleanup(8) too where it is a milter."""
    outgoing, settings = picture.side("outgoing"), picture.settings
    if outgoing is None or not outgoing.watched:
        return []
    behind = {"alias_maps": "postalias"}
    remedy = "forward with virtual_alias_maps, which work in front of it"
    if not outgoing.filters:
        behind |= dict.fromkeys(("virtual_alias_maps", "canonical_maps", "recipient_canonical_maps"), "postmap")
        remedy = "let users give such mail the address it goes to, or take a content filter instead of the milter"
    faults = []
    for parameter, program in behind.items():
        for table in split_list(settings.value(parameter)):
            targets = await _alias_targets(picture, program, table)
            if targets is None:
                faults.append(
                    Fault(
                        "aliases-unseen",
                        f"{parameter} {table}",
                        "cannot be listed, and what it sends on to another site leaves behind the relay, in clear",
                        f"use a table that can be listed (hash, lmdb, texthash); {remedy}",
                    )
                )
            elif outside := _outside(picture, targets):
                faults.append(_forwards(f"{parameter} {table}", outside, remedy))
    if outside := _outside(picture, [settings.value("luser_relay")]):
        faults.append(_forwards("main.cf: luser_relay", outside, remedy))
    return faults


async def actions(picture: Picture) -> list[Fault]:
    """What access tables and header checks can do to a mail's way: REDIRECT and FILTER override the content filter."""
    outgoing = picture.side("outgoing")
    if outgoing is None or not outgoing.watched:
        return []
    faults = []
    for where, table in dict.fromkeys(_tables_of_actions(picture)):
        for verb, target in _ACTION.findall(await _text(picture, table)):
            if _harmless(picture, outgoing, verb.upper(), target):
                continue
            faults.append(
                Fault(
                    "action-bypass",
                    where,
                    f"{verb.upper()} {target} in {table} leads mail past the relay, in clear",
                    "use virtual_alias_maps or transport settings in front of it, or take the action out",
                )
            )
    return faults


def _harmless(picture: Picture, outgoing: Side, verb: str, target: str) -> bool:
    """Whether an action leaves the mail where it is, leads it to the relay, or comes when it is sealed already."""
    if verb == "FILTER":
        found = destination(target)
        to_relay = found is not None and listens(outgoing.direction, found[1]) is not None
        return to_relay or ":" not in target or not outgoing.filters
    in_front = verb == "BCC" and bool(outgoing.filters)
    return in_front or not _outside(picture, [target])


def _tables_of_actions(picture: Picture) -> Iterator[tuple[str, str]]:
    """Every table with actions, and where it stands."""
    settings = picture.settings
    for source in picture.sources:
        cleanup = settings.service(settings.value("cleanup_service_name", source), "unix")
        for name in CHECKS:
            tables = split_list(settings.value(name, cleanup))
            yield from ((settings.where(name, cleanup), table) for table in tables)
        for kind in RESTRICTIONS if source.command == "smtpd" else ():
            name = f"smtpd_{kind}_restrictions"
            words = split_list(settings.value(name, source))
            yield from ((settings.where(name, source), table) for table in words if ":" in table)


def _forwards(where: str, outside: list[str], remedy: str) -> Fault:
    shown = ", ".join(outside[:3]) + (", ..." if len(outside) > 3 else "")
    return Fault(
        "aliases-bypass",
        where,
        f"forwards to {shown}: what aliases send on starts behind the relay and leaves in clear",
        remedy,
    )


def _outside(picture: Picture, targets: list[str]) -> list[str]:
    """Those of the addresses that are at no domain of this site."""
    own = {*picture.config.site.domains, *picture.settings.words("mydestination")}
    return [target for target in targets if domain_of(target) and domain_of(target) not in own]


def _asks(picture: Picture, side: Side, service: Service) -> bool:
    """Whether what comes in by this service is shown to the relay's milter."""
    running = milters(picture.settings, service)
    return any(is_milter_of(picture.settings, side.direction, milter) for milter in running)


async def _alias_targets(picture: Picture, program: str, table: str) -> list[str] | None:
    """The addresses with a domain to which an alias table forwards; None where it cannot be listed."""
    listed = await _listed(picture, program, table)
    if listed is None:
        return None
    targets: list[str] = []
    for line in listed.splitlines():
        for target in re.split(r"[,\s]+", line.partition("\t")[2]):
            targets += _included(Path(target[9:])) if target.startswith(":include:") else [target]
    return [target for target in targets if domain_of(target) and not target.startswith(_NO_ADDRESS)]


def _included(path: Path) -> list[str]:
    """The addresses in a file that an alias includes; none where it cannot be read."""
    return [word for line in _read(path).splitlines() if not line.startswith("#") for word in re.split(r"[,\s]+", line)]


async def _text(picture: Picture, table: str) -> str:
    """What stands in a table, as far as it can be read."""
    kind, _, name = table.removeprefix("proxy:").partition(":")
    if kind in TEXT_TABLES:
        return name if name.startswith("{") else _read(Path(name))
    listed = await _listed(picture, "postmap", table)
    return listed or ""


async def _listed(picture: Picture, program: str, table: str) -> str | None:
    """All of a table, as a line `key<tab>value` for each entry; None where it cannot be listed."""
    table = table.removeprefix("proxy:")
    if table.partition(":")[0] not in SEQUENTIAL_TABLES:
        return None
    try:
        return (await command(program, picture.settings.directory, "-s", table))[0]
    except ConfigError:
        return None


def _read(path: Path) -> str:
    """The beginning of a file that Postfix reads; "" where we may not."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(MAX_READ)
    except (OSError, ValueError):
        return ""
