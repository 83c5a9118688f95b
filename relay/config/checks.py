"""What is wrong between one table of relay.toml and another.
Each fault names the setting at which it can be fixed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from relay.config.listeners import listening_settings
from relay.config.values import TCPAddress
from relay.files.stamps import stamp_of

if TYPE_CHECKING:
    from relay.config import Config

WrongSetting = tuple[tuple[str | int, ...], str]
"""The place of the setting in the file, and what is wrong."""


def faults(config: Config) -> Iterator[WrongSetting]:
    """Everything that is wrong, whatever each table says for itself."""
    for check in (
        _nothing_to_serve,
        _submission_that_cannot_be,
        _quarantine_too_small,
        _dkim_that_cannot_be,
        _groups_that_cannot_be,
        _workers_that_cannot_be,
        _peers_that_cannot_be,
        _canary_that_cannot_be,
    ):
        yield from check(config)


def _nothing_to_serve(config: Config) -> Iterator[WrongSetting]:
    outgoing, incoming = config.outgoing, config.incoming
    if outgoing is None and incoming is None and not config.imap:
        yield (), "neither [outgoing], [incoming] nor [imap.*] is set, so there is nothing to serve"
    for name, direction in (("outgoing", outgoing), ("incoming", incoming)):
        names = listening_settings(name)
        if direction is None or any(getattr(direction, each) for each in names):
            continue
        if name == "outgoing" and config.submission:
            continue
        said = f"{', '.join(names[:-1])} and {names[-1]}".replace("listen", "listen (SMTP)")
        yield (name,), f"{name}: none of {said} is set, so no mail can come in"
    yield from _listening_twice(config)


def _workers_that_cannot_be(config: Config) -> Iterator[WrongSetting]:
    """With such a KME one process draws the next keys when those before were fetched; it knows only of its own."""
    for name, kme in config.kmes.items():
        if kme.one_batch_at_a_time and config.limits.workers > 1:
            cause = f"kmes.{name}.one_batch_at_a_time is set, and of such a KME one process draws; set workers = 1"
            yield ("limits", "workers"), f"limits.workers: {cause}"


def _listening_twice(config: Config) -> Iterator[WrongSetting]:
    taken: dict[TCPAddress, str] = {}
    for name in ("outgoing", "submission", "incoming", "status"):
        for setting in (*listening_settings("outgoing"), "listen_tls"):
            address: TCPAddress | Path | None = getattr(getattr(config, name), setting, None)
            if not isinstance(address, TCPAddress) or not address.port:
                continue
            if other := taken.get(address):
                yield (name, setting), f"{name}.{setting}: {other} already listens there; choose another port"
            taken[address] = f"{name}.{setting}"


def _submission_that_cannot_be(config: Config) -> Iterator[WrongSetting]:
    """Users need somewhere to connect to, something that knows them, and a way out for their mail."""
    submission, here = config.submission, ("submission",)
    if submission is None:
        return
    if config.outgoing is None:
        yield here, "submission: [outgoing] is not set, so there is no next hop for what users submit"
    if submission.listen is None and submission.listen_tls is None:
        yield here, "submission: neither listen (STARTTLS) nor listen_tls (TLS from the start) is set"
    if submission.users is None and submission.dovecot_auth is None:
        yield here, "submission: neither users (a password file) nor dovecot_auth (a socket of Dovecot's) is set"


def _quarantine_too_small(config: Config) -> Iterator[WrongSetting]:
    """One peer may take half of it, and the largest message that is taken must fit in there."""
    needed = 2 * config.incoming.max_message_size if config.incoming else 0
    if config.quarantine.action == "keep" and config.quarantine.max_size <= needed:
        what = f"write more than {needed} bytes, twice incoming.max_message_size, or the largest messages never fit"
        yield ("quarantine", "max_size"), f"quarantine.max_size: {what}"


def _dkim_that_cannot_be(config: Config) -> Iterator[WrongSetting]:
    """We sign for our own domains only, and name servers are asked by their addresses."""
    table = config.dkim
    if table is None:
        return
    for number, key in enumerate(table.keys):
        if key.domain not in config.site.domains:
            yield ("dkim", "keys", number, "domain"), f"dkim.keys: {key.domain!r} is none of site.domains"
    if table.arc_seal and not (table.keys and table.verify):
        yield ("dkim", "arc_seal"), "dkim.arc_seal: needs verify, and one of [[dkim.keys]] to seal with"
    for server in table.dns_servers:
        try:
            ipaddress.ip_address(server.host)
        except ValueError:
            yield ("dkim", "dns_servers"), f"dkim.dns_servers: {server.host!r} is not an IP address"


def _canary_that_cannot_be(config: Config) -> Iterator[WrongSetting]:
    """It has to leave, and its receipt to come in."""
    if config.canary.every is not None and (config.outgoing is None or config.incoming is None):
        yield ("canary", "every"), "canary.every: needs [outgoing], for canaries, and [incoming], for their receipts"


def _groups_that_cannot_be(config: Config) -> Iterator[WrongSetting]:
    """The KMEs of one group share their keys, so what these are used for as well."""
    uses: dict[str, str] = {}
    for name, kme in config.kmes.items():
        if uses.setdefault(kme.group, kme.use) != kme.use:
            other = uses[kme.group]
            yield (
                ("kmes", name, "use"),
                f"kmes.{name}: use is {kme.use!r}, and {other!r} elsewhere in group {kme.group!r}",
            )


def _peers_that_cannot_be(config: Config) -> Iterator[WrongSetting]:
    """A peer must have keys to share, an SAE ID of its own, and domains that nobody else has."""
    groups = {kme.group for kme in config.kmes.values()}
    domains = dict.fromkeys(config.site.domains, "site.domains")
    sae_ids = {config.site.sae_id: "site.sae_id"}
    for name, peer in config.peers.items():
        here = ("peers", name)
        for group in peer.kme_groups:
            if group not in groups:
                known = ", ".join(sorted(groups)) or "none"
                yield (*here, "kme_groups"), f"peers.{name}: no KME has group {group!r}; known: {known}"
        if not (peer.domains and peer.sae_id) and not _has_document(config, name):
            missing = " and ".join(each for each in ("domains", "sae_id") if not getattr(peer, each))
            yield (
                here,
                f"{'.'.join(here)}: {missing} missing, and no document of that name is imported to have them from",
            )
        if owner := sae_ids.get(peer.sae_id):
            yield (*here, "sae_id"), f"{'.'.join(here)}: sae_id {peer.sae_id!r} already belongs to {owner}"
        if peer.sae_id:
            sae_ids.setdefault(peer.sae_id, ".".join(here))
        for domain in peer.domains:
            if owner := domains.get(domain):
                yield (*here, "domains"), f"{'.'.join(here)}: domain {domain!r} already belongs to {owner}"
            domains.setdefault(domain, ".".join(here))


def _has_document(config: Config, peer: str) -> bool:
    """Also where that cannot be determined: reading it says so then."""
    return config.identity is not None and stamp_of(config.identity.document(peer)) is not None
