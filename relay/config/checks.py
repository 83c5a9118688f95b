"""Contradictions between tables of relay.toml.
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
"""The location of the setting in the file, and the fault."""


def faults(config: Config) -> Iterator[WrongSetting]:
    """All contradictions between tables."""
    for check in (
        _nothing_to_serve,
        _invalid_submission,
        _quarantine_too_small,
        _invalid_dkim,
        _conflicting_groups,
        _impossible_workers,
        _invalid_peers,
        _invalid_canary,
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
        settings = f"{', '.join(names[:-1])} and {names[-1]}".replace("listen", "listen (SMTP)")
        yield (name,), f"{name}: none of {settings} is set, so no mail can come in"
    yield from _listening_twice(config)


def _impossible_workers(config: Config) -> Iterator[WrongSetting]:
    """Such a KME needs a single process, which draws keys after the previous ones were fetched."""
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


def _invalid_submission(config: Config) -> Iterator[WrongSetting]:
    """Submission needs a listener, a user database, and a next hop."""
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
    """A peer may take half of it, which must hold the largest accepted message."""
    needed = 2 * config.incoming.max_message_size if config.incoming else 0
    if config.quarantine.action == "keep" and config.quarantine.max_size <= needed:
        text = f"write more than {needed} bytes, twice incoming.max_message_size, or the largest messages never fit"
        yield ("quarantine", "max_size"), f"quarantine.max_size: {text}"


def _invalid_dkim(config: Config) -> Iterator[WrongSetting]:
    """Keys must be for our own domains, and name servers be IP addresses."""
    table = config.dkim
    if table is None:
        return
    for number, key in enumerate(table.keys):
        if key.domain not in config.site.domains:
            yield ("dkim", "keys", number, "domain"), f"dkim.keys: {key.domain!r} is none of site.domains"
    for server in table.dns_servers:
        try:
            ipaddress.ip_address(server.host)
        except ValueError:
            yield ("dkim", "dns_servers"), f"dkim.dns_servers: {server.host!r} is not an IP address"


def _invalid_canary(config: Config) -> Iterator[WrongSetting]:
    """A canary needs both directions."""
    if config.canary.every is not None and (config.outgoing is None or config.incoming is None):
        yield ("canary", "every"), "canary.every: needs [outgoing], for canaries, and [incoming], for their receipts"


def _conflicting_groups(config: Config) -> Iterator[WrongSetting]:
    """The KMEs of one group share their keys, and so their use."""
    uses: dict[str, str] = {}
    for name, kme in config.kmes.items():
        if uses.setdefault(kme.group, kme.use) != kme.use:
            other = uses[kme.group]
            yield (
                ("kmes", name, "use"),
                f"kmes.{name}: use is {kme.use!r}, and {other!r} elsewhere in group {kme.group!r}",
            )


def _invalid_peers(config: Config) -> Iterator[WrongSetting]:
    """A peer needs shared keys, and its own SAE ID and domains."""
    groups = {kme.group for kme in config.kmes.values()}
    domains = dict.fromkeys(config.site.domains, "site.domains")
    sae_ids = {config.site.sae_id: "site.sae_id"}
    for name, peer in config.peers.items():
        here = ("peers", name)
        for group in peer.kme_groups:
            if group not in groups:
                group_names = ", ".join(sorted(groups)) or "none"
                yield (*here, "kme_groups"), f"peers.{name}: no KME has group {group!r}; known: {group_names}"
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
    """Whether the peer has a document; True if unknown: reading it reports the error."""
    return config.identity is not None and stamp_of(config.identity.document(peer)) is not None
