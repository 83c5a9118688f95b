"""Reloads settings, peers, identity, DKIM and TLS while the relay serves, at SIGHUP or when a file has changed.
Standard: a mail uses one version from start to end. A broken file leaves the old version in force, and is logged.

The thread that watches policies (policy/reload.py) polls these files too. KMEs' certificates (keys/ring.py) and
password files (entry/smtp/users.py) are checked where they are used.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from relay.config import Config
from relay.config.reloaded import changed, needs_restart, taken_over
from relay.entry import Reloadable
from relay.errors import ConfigError
from relay.files import write_whole
from relay.files.quiet import GONE_QUIET_S, LOOK_S, QUIET_S, Quiet
from relay.files.stamps import Stamps, Unknown, read_json
from relay.formats.mailbox import folded_domain
from relay.identity import KnownSites, only_sending, site_stamps
from relay.journey.opening.layers import Layers
from relay.journey.planner import Planner
from relay.keys.build import peer_keys
from relay.keys.ring import KeyRing
from relay.policy.reload import PoliciesInForce
from relay.policy.site import SiteFacts
from relay.schemes import Scheme
from relay.smime.sealing import SMIMESealer, smime_stamps

log = structlog.get_logger(__name__)


class Settings:
    """The settings in force: those at the start, with the reloadable ones of the last reload."""

    def __init__(
        self,
        started: Config,
        read: Callable[[], Config] | None = None,
        *,
        logs: bool = True,
        on_disk: Callable[[], Config] | None = None,
    ) -> None:
        """`read` returns the current file, or raises ConfigError; with `logs` False another process logs changes.

        `on_disk` is for a worker, for which `read` returns what the supervisor has read.
        """
        self.on_disk = on_disk or read or (lambda: started)
        self._started = started
        self._now = started
        self._read = read
        self._logs = logs

    def __call__(self) -> Config:
        return self._now

    def reload(self) -> None:
        """Applies reloadable settings; logs what has changed, and what needs a restart."""
        if self._read is None:
            return
        try:
            read = self._read()
            now = taken_over(self._started, read)
        except ConfigError as error:
            if self._logs:
                log.error("relay_toml_not_reloaded", problems=error.problems)
            return
        except Exception as error:  # the old settings stay in force, and everything else is reloaded
            log.error("not_reloaded", what="Settings", cause=f"{type(error).__name__}: {error}", exc_info=error)
            return
        before, self._now = self._now, now
        if not self._logs:
            return
        if taken := changed(before, now):
            log.info("relay_toml_reloaded", changed=taken)
        if waiting := [each for each in changed(self._started, read) if needs_restart(each)]:
            log.warning("settings_need_restart", changed=waiting)


Domains = Mapping[str, tuple[str, ...]]
"""Mail domains by the name of their peer."""


class FormerPeers:
    """The domains of all peers that there have been, for workers that start later, and for the next start.

    A JSON file, replaced atomically. A peer whose document is lost stays known by it. Both methods block.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> Domains:
        """The domains last written by a process of this relay; empty if there are none."""
        try:
            return read_json(self._file, former_domains)
        except (OSError, ValueError):
            return {}

    def write(self, domains: Domains) -> None:
        """Writes the domains; a failure is logged, and this process goes on with them."""
        try:
            write_whole(self._file, json.dumps({"domains": domains}))
        except OSError as error:
            log.warning("peers_not_kept", file=str(self._file), cause=error.strerror)


def former_domains(content: Mapping[str, Any]) -> Domains:
    """The domains in the JSON of that file. Raises ValueError and much else for what no relay writes."""
    return {str(name): tuple(map(str, domains)) for name, domains in content["domains"].items()}


class SitesInForce:
    """The current site and peers, with planner and layers for them."""

    def __init__(self, settings: Callable[[], Config], former: FormerPeers | None) -> None:
        """Raises ConfigError; blocks. `use` must be called before `planner` and `layers`.

        `former` is only for a serving process: a command would overwrite what workers need.
        """
        self._settings = settings
        self._former = former
        self.read_at = self.stamps()
        self.known = KnownSites.read(settings())
        self.smime = SMIMESealer.of(settings())
        self.domains = _with_former(self.known.config.peer_domains, former.read() if former is not None else {})
        """The mail domains of peers and former peers, for policies."""
        self._keep()
        self._levels: Mapping[str, Scheme] = {}
        self._keys: KeyRing | None = None

    def use(self, levels: Mapping[str, Scheme], keys: KeyRing) -> None:
        """Sets levels and keys for sealing and opening."""
        self._levels, self._keys = levels, keys
        self._take(self.known)

    def planner(self) -> Planner:
        """The value in force; to be called once for each mail."""
        return self._planner

    def layers(self) -> Layers:
        """The value in force; to be called once for each mail."""
        return self._layers

    def config(self) -> Config:
        """The configuration with the current peers."""
        return self.known.config

    def receiving(self) -> Config:
        """The same, without the peers that open no sealed mail, by their documents."""
        config, only_send = self.config(), only_sending(self._planner.certificates)
        peers = {name: peer for name, peer in config.peers.items() if name not in only_send}
        return config.model_copy(update={"peers": peers}) if only_send else config

    def stamps(self) -> Stamps:
        """Stamps of all documents, keys and certificates of ours."""
        return site_stamps(self._settings()) | smime_stamps(self._settings())

    def read_again(self) -> KnownSites:
        """Reads the files and updates `domains`; `take` puts the rest in force."""
        self.read_at = self.stamps()
        sites = self.known.read_again(self._settings())
        try:
            self.smime = SMIMESealer.of(self._settings())
        except ConfigError as error:
            log.error("smime_keys_not_reloaded", problems=error.problems)
        if (domains := _with_former(sites.config.peer_domains, self.domains)) != self.domains:
            self.domains = domains
            self._keep()
        return sites

    def _keep(self) -> None:
        if self._former is not None:
            self._former.write(self.domains)

    def take(self, sites: KnownSites) -> None:
        """Puts `sites` in force from the next mail on; call it in the event loop."""
        assert self._keys is not None  # noqa: S101 - a serving relay has called `use`
        sites.log_changes(self.known)
        # Keys first: a mail planned for a new peer must not fall back to another level without them.
        self._keys.set_peers({name: peer_keys(peer) for name, peer in sites.config.peers.items()})
        self._take(sites)

    def _take(self, sites: KnownSites) -> None:
        assert self._keys is not None  # noqa: S101 - as above
        self.known = sites
        site = (sites.identity, sites.certificates)
        self._planner = Planner(sites.config, self._levels, *site, self.smime)
        self._layers = Layers(sites.config, self._levels, self._keys, *site)


def _with_former(now: Domains, before: Domains) -> dict[str, tuple[str, ...]]:
    """The peers' domains, with those of former peers under an unused peer name.

    Mail to these is held unless a policy file names their domain: others that permit clear text do not apply to them.
    """
    found = {name: tuple(map(folded_domain, domains)) for name, domains in now.items()}
    owned = {domain for domains in found.values() for domain in domains}
    for name, domains in before.items():
        if former := tuple(each for each in domains if each not in owned):
            whose = f"{name} before" if name in now else name
            found[whose] = (*found.get(whose, ()), *former)
    return found


class Reloading:
    """Polls files and reloads what depends on them, in the thread that watches policies."""

    def __init__(
        self,
        settings: Settings,
        sites: SitesInForce,
        policies: PoliciesInForce,
        others: Sequence[Reloadable],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create it in the event loop. `clock` gives seconds since any moment."""
        self._settings, self._sites, self._policies = settings, sites, policies
        self._loop = asyncio.get_running_loop()
        self._asked = False
        self._clock = clock
        self._looked_at = float("-inf")
        self._watched = [
            (_WatchedFiles(sites, clock), self._reload_sites),
            *((_WatchedFiles(each, clock), each.reload) for each in others),
        ]

    def ask(self) -> None:
        """SIGHUP: requests a reload of everything, changed or not."""
        self._asked = True
        self._policies.reload()

    def look(self) -> None:
        """Polls all files once and reloads what has changed; raises nothing."""
        now = self._clock()
        if not self._asked and now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        asked, self._asked = self._asked, False
        if asked:
            self._settings.reload()
        for watched, reload in self._watched:
            try:
                if watched.is_to_be_read(now) or asked:
                    reload()
                watched.trouble = ""
            except Exception as error:  # the old version stays in force; the rest is reloaded
                if watched.trouble != (trouble := f"{type(error).__name__}: {error}"):
                    log.error("not_reloaded", what=type(watched.what).__name__, cause=trouble, exc_info=error)
                watched.trouble = trouble

    def _reload_sites(self) -> None:
        sites = self._sites.read_again()
        # Policies first: mail for a new peer is held until all else knows it, and never leaves as anybody's.
        self._policies.set_peers(self._sites.domains, SiteFacts.of(sites.config))
        self._loop.call_soon_threadsafe(self._sites.take, sites)


class _WatchedFiles:
    """Detects files that have changed and are quiet."""

    def __init__(self, what: Reloadable | SitesInForce, clock: Callable[[], float]) -> None:
        self.what = what
        self.trouble = ""
        self._quiet = Quiet(clock)

    def is_to_be_read(self, now: float) -> bool:
        """Whether to read them, true once for each change; `now` in seconds."""
        read_at, stamps = self.what.read_at, self.what.stamps()
        gone = any(stamp is not None and _is_gone(path, stamps) for path, stamp in read_at.items())
        return self._quiet.seconds(stamps, now) >= (GONE_QUIET_S if gone else QUIET_S) and stamps != read_at


def _is_gone(path: Path, stamps: Stamps) -> bool:
    """Whether the file is gone; False where its directory cannot be searched."""
    return stamps.get(path) is None and not isinstance(stamps.get(path.parent), Unknown)
