"""Rules on the service that takes mail back from the relay: for the relay only, not to it again, and unchanged.
Standard: FILTER_README, XFORWARD_README, postconf(5).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from relay.files import commands
from relay.postfix.flow import MailFlow, RelayDirection, is_loopback, service_address
from relay.postfix.settings import MasterService, PostfixFault

RESTRICTIONS = ("client", "helo", "sender", "relay", "recipient", "data", "end_of_data")
REFUSALS = frozenset({"reject", "defer", "reject_unauth_destination", "defer_unauth_destination"})
TLS_THAT_REFUSES = ("encrypt", "dane-only", "fingerprint", "verify", "secure")
KEYWORDS = ("dsn", "8bitmime", "smtputf8")
HANDLED_BEFORE = ("no_unknown_recipient_checks", "no_header_body_checks")


def no_reinjection(flow: MailFlow) -> Iterator[PostfixFault]:
    """The relay hands mail to a port of this host without a listening Postfix."""
    for side in flow.sides:
        if side.handed_back and not side.reinjections:
            address = side.handed_back[0]
            yield PostfixFault(
                "no-reinjection",
                f"{flow.settings.directory}/master.cf",
                f"no smtpd service at {address}, where the relay's [{side.name}] hands mail back, so all mail waits",
                f"add it, as master.cf in deploy/postfix/{side.name}-* does",
            )


def loop(flow: MailFlow) -> Iterator[PostfixFault]:
    """Mail that the relay hands back enters it again."""
    for side, service in _reinjections(flow):
        again = set(flow.leads_to(service)) - ({"outgoing"} if side.name == "incoming" else set())
        for name in ("smtpd_proxy_filter", "content_filter", "smtpd_milters") if again else ():
            setting = flow.settings.of(name, service)
            if setting.value:
                text = (
                    f"what the relay hands back to {service.name} goes to the relay's [{min(again)}] again, in a loop"
                )
                yield setting.fault("loop", text, setting.to(""))


def open_to_others(flow: MailFlow) -> Iterator[PostfixFault]:
    """Other hosts can reach the port, and so send as anybody past the relay."""
    only_here = flow.settings.of("inet_interfaces").words in (["loopback-only"], ["127.0.0.1"], ["localhost"])
    for side, service in _reinjections(flow):
        at = service_address(service)
        if at and not is_loopback(at[0]) and not only_here and all(is_loopback(each.host) for each in side.handed_back):
            yield PostfixFault(
                "reinjection-open",
                f"master.cf {service.key}",
                "the port is open on every interface, and mail that comes in by it passes the relay",
                f"name the service 127.0.0.1:{at[1]}",
            )


def strangers_trusted(flow: MailFlow) -> Iterator[PostfixFault]:
    """mynetworks, which decides who may use the port, does not name this host, or not this host alone."""
    for side, service in _reinjections(flow):
        if not all(is_loopback(address.host) for address in side.handed_back):
            continue
        setting = flow.settings.of("mynetworks", service)
        networks = [_network(word) for word in setting.words]
        foreign = [each for each in networks if each is not None and not _is_here(each)]
        if foreign or not any(_is_here(each) for each in networks):
            text = f"relays for {foreign[0]} too" if foreign else "refuses the relay itself"
            yield setting.fault("reinjection-mynetworks", f"{service.name} {text}", setting.to("127.0.0.0/8"))


def restrictions(flow: MailFlow) -> Iterator[PostfixFault]:
    """Restrictions for clients refuse what the relay has sealed or opened."""
    for _, service in _reinjections(flow):
        every = {kind: flow.settings.of(f"smtpd_{kind}_restrictions", service) for kind in RESTRICTIONS}
        for setting in every.values():
            if setting.words and setting.words[0] not in ("permit_mynetworks", "permit"):
                yield setting.fault(
                    "reinjection-restrictions",
                    "mail that was accepted already is looked at again when the relay hands it back, and may be lost "
                    "to a bounce",
                    setting.to("permit_mynetworks,reject"),
                )
        if all(REFUSALS.isdisjoint(every[kind].words) for kind in ("client", "relay", "recipient")):
            yield PostfixFault(
                "reinjection-restrictions",
                f"master.cf {service.key}",
                "nothing refuses other clients than the relay",
                every["client"].to("permit_mynetworks,reject"),
            )


def done_again(flow: MailFlow) -> Iterator[PostfixFault]:
    """Processing in front of the relay is repeated behind it, or done at neither place."""
    for side, service in _reinjections(flow):
        setting = flow.settings.of("receive_override_options", service)
        options = setting.words
        if _in_front_of_the_queue(side):
            if late := [option for option in ("no_address_mappings", "no_header_body_checks") if option in options]:
                yield setting.fault(
                    "not-mapped",
                    f"{' and '.join(late)}: aliases or header checks do nothing for what came in by smtpd_proxy_filter",
                    f"take {','.join(late)} out",
                )
            continue
        if missing := [option for option in HANDLED_BEFORE if option not in options]:
            yield setting.fault(
                "checked-again",
                f"{' and '.join(missing)} missing: recipients and headers are checked again behind the relay, and "
                "what fails there is lost to a bounce",
                f"add {','.join(missing)}",
            )
        if side.by_milter and not side.filters:  # milters see recipients before these maps apply
            if "no_address_mappings" in options:
                yield setting.fault(
                    "not-mapped",
                    "virtual aliases, canonical and BCC maps do not work for those whose copy the relay hands back",
                    "take no_address_mappings out",
                )
            continue
        in_front = [
            source
            for source in flow.sources
            if side.name in flow.leads_to(source)
            and not is_loopback((service_address(source) or ("", 0))[0])  # another filter hands back there
        ]
        not_mapped = [each for each in in_front if _without_mappings(flow, each)]
        if side.name == "incoming":
            yield from _mapped_in_front(flow, service, [each for each in in_front if each not in not_mapped])
            continue
        if "no_address_mappings" not in options and not not_mapped:
            yield setting.fault(
                "mapped-again",
                "no_address_mappings is missing: virtual aliases, canonical and BCC maps work twice, the second time "
                "behind the relay, where a new recipient is not sealed for",
                "add no_address_mappings",
            )
        for source in not_mapped:
            yield flow.settings.of("receive_override_options", source).fault(
                "mapped-behind",
                "virtual aliases, canonical and BCC maps work behind the relay, which then decides about other "
                "recipients than those who get the mail",
                f"take no_address_mappings out here, and set it for {service.key}",
            )


def _mapped_in_front(flow: MailFlow, service: MasterService, sources: list[MasterService]) -> Iterator[PostfixFault]:
    """Recipients are rewritten before the relay, which opens a sealed mail only for those whom its sender named."""
    for source in sources:
        setting = flow.settings.of("receive_override_options", source)
        yield setting.fault(
            "mapped-in-front",
            "virtual aliases, canonical and BCC maps work in front of the relay, which opens a sealed mail only for "
            "those whom its sender named, and keeps it from all others",
            setting.to("no_address_mappings"),
        )
    if _without_mappings(flow, service):
        yield flow.settings.of("receive_override_options", service).fault(
            "not-mapped",
            "virtual aliases, canonical and BCC maps do not work for what arrives",
            "take no_address_mappings out",
        )


def _without_mappings(flow: MailFlow, service: MasterService) -> bool:
    return "no_address_mappings" in flow.settings.of("receive_override_options", service).words


def _in_front_of_the_queue(side: RelayDirection) -> bool:
    """Whether arriving mail bypasses cleanup(8) before the relay; then it must pass cleanup(8) afterwards."""
    settings = {handover.setting for handover in side.filters}
    return side.name == "incoming" and settings == {"smtpd_proxy_filter"} and not side.by_milter


def rewritten(flow: MailFlow) -> Iterator[PostfixFault]:
    """Header fields change, although signatures cover them."""
    for _, service in _reinjections(flow):
        setting = flow.settings.of("local_header_rewrite_clients", service)
        if setting.value:
            text = "Postfix adds fields and domains to the header of what the relay hands back"
            yield setting.fault("rewritten", text, setting.to(""))


def refused(flow: MailFlow) -> Iterator[PostfixFault]:
    """The relay cannot hand back all that it accepted, with all parameters."""
    for side, service in _reinjections(flow):
        tls = flow.settings.of("smtpd_tls_security_level", service)
        if side.direction.next_hop_tls in ("auto", "none") and tls.value in TLS_THAT_REFUSES:
            yield tls.fault("reinjection-needs-tls", "the port takes no mail without TLS", tls.to("none"))
        discarded = flow.settings.of("smtpd_discard_ehlo_keywords", service)
        if hidden := [word for word in discarded.words if word in KEYWORDS]:
            yield discarded.fault(
                "keywords-hidden",
                f"{', '.join(hidden)} is not offered, so the relay cannot pass on what mails carry; without dsn a "
                "bounce of an opened mail quotes all of it",
                discarded.to(""),
            )
        utf8 = flow.settings.of("smtputf8_enable", service)
        if utf8.value == "no" and flow.settings.value("smtputf8_enable") == "yes":
            text = "Postfix takes mail with addresses in Unicode, and refuses it when the relay hands it back"
            yield utf8.fault(
                "smtputf8-refused", text, commands.command("postconf", "-PX", f"{service.key}/smtputf8_enable")
            )
        xforward = flow.settings.of("smtpd_authorized_xforward_hosts", service)
        if not any(_is_here(_network(word)) for word in xforward.words):
            text = "Postfix's log then names the relay for every mail, not the client"
            yield xforward.fault("xforward-refused", text, xforward.to("127.0.0.0/8"))


def _reinjections(flow: MailFlow) -> Iterator[tuple[RelayDirection, MasterService]]:
    for side in flow.sides:
        for service in side.reinjections:
            yield side, service


_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _network(word: str) -> _Network | None:
    """The network in `127.0.0.0/8` or `[::1]/128`; None for tables, names and exclusions."""
    try:
        return ipaddress.ip_network(word.replace("[", "").replace("]", ""), strict=False)
    except ValueError:
        return None


def _is_here(network: _Network | None) -> bool:
    """Whether the network is loopback, including IPv4 mapped into IPv6."""
    if network is None:
        return False
    mapped = network.network_address.ipv4_mapped if isinstance(network, ipaddress.IPv6Network) else None
    return network.is_loopback or (mapped is not None and mapped.is_loopback and network.prefixlen >= 104)
