"""What a relay reads again while it serves, at SIGHUP or once a file has changed: settings, peers, identity, DKIM, TLS.
Standard: a mail goes by one set from start to end. What is broken leaves in force what was; each is a line in the log.

The thread that follows the policies' edits (policy/reload.py) looks at these files too. KMEs' certificates
(keys/ring.py) and password files (entry/smtp/users.py) are looked at where they are used.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import structlog

from relay.config import Config
from relay.config.reloaded import changed, needs_restart, taken_over
from relay.entry import Reloadable
from relay.errors import ConfigError
from relay.files import write_whole
from relay.files.stamps import Stamps, Unknown, read_regular
from relay.formats.mailbox import folded_domain
from relay.identity import KnownSites, site_stamps
from relay.journey.opening.layers import Layers
from relay.journey.planner import Planner
from relay.keys.build import peer_keys
from relay.keys.ring import KeyRing
from relay.policy.reload import PoliciesInForce
from relay.schemes import Scheme

log = structlog.get_logger(__name__)

LOOK_S = 0.3
"""Poll interval of the files, in seconds."""
QUIET_S = 0.4
"""Time without changes after which a file counts, in seconds: it may be half-written before."""
GONE_QUIET_S = 2.0
"""Time without changes after which a file counts as gone, in seconds: many programs replace one by deleting it first.
"""


class Settings:
    """relay.toml as it counts now: as it was at the start, but for what counts at once when it is read again."""

    def __init__(self, started: Config, read: Callable[[], Config] | None = None, *, tell: bool = True) -> None:
        """`read` gives the file as it is now, or raises ConfigError; `tell` False where another process says so."""
        self._started = started
        self._now = started
        self._read = read
        self._tell = tell

    def __call__(self) -> Config:
        return self._now

    def reload(self) -> None:
        """Takes over what can be, and says what changed, and what of it needs a restart."""
        if self._read is None:
            return
        try:
            read = self._read()
            now = taken_over(self._started, read)
        except ConfigError as error:
            if self._tell:
                log.error("relay_toml_not_reloaded", problems=error.problems)
            return
        except Exception as error:  # what counted before goes on, and all else is read again
            log.error("not_reloaded", what="Settings", cause=f"{type(error).__name__}: {error}", exc_info=error)
            return
        before, self._now = self._now, now
        if not self._tell:
            return
        if taken := changed(before, now):
            log.info("relay_toml_reloaded", changed=taken)
        if waiting := [each for each in changed(self._started, read) if needs_restart(each)]:
            log.warning("settings_need_restart", changed=waiting)


Domains = Mapping[str, tuple[str, ...]]
"""Mail domains by the name of their peer."""


class FormerPeers:
    """Whose the peers' domains were, for the workers of one relay: one that starts anew must not forget a former peer.

    A JSON file, replaced whole; it counts for the relay that wrote it, until that is started anew. Both methods block.
    """

    def __init__(self, file: Path, relay: str) -> None:
        """`relay` is what its processes have in common, and no other relay has: the name of their board."""
        self._file, self._relay = file, relay

    def read(self) -> Domains:
        """What another process of this relay knew last; nothing where there was none."""
        try:
            said = json.loads(read_regular(self._file))
            if said["relay"] == self._relay:
                return {str(name): tuple(map(str, domains)) for name, domains in said["domains"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
        return {}

    def write(self, domains: Domains) -> None:
        """Keeps them; where that cannot be, the log says so, and the processes that know them go on."""
        try:
            write_whole(self._file, json.dumps({"relay": self._relay, "domains": domains}))
        except OSError as error:
            log.warning("peers_not_kept", file=str(self._file), cause=error.strerror)


class SitesInForce:
    """This site and its peers as they are known now, and what plans and opens by that."""

    def __init__(self, settings: Callable[[], Config], former: FormerPeers | None) -> None:
        """Raises ConfigError. `use` comes before `planner` and `layers`; blocks.

        `former` is for a process that serves. A command has none: what it wrote there would make workers forget.
        """
        self._settings = settings
        self._former = former
        self.read_at = self.stamps()
        self.known = KnownSites.read(settings())
        self.domains = _with_former(self.known.config.peer_domains, former.read() if former is not None else {})
        """The peers' mail domains as policies go by them: also of former peers."""
        self._keep()
        self._levels: Mapping[str, Scheme] = {}
        self._keys: KeyRing | None = None

    def use(self, levels: Mapping[str, Scheme], keys: KeyRing) -> None:
        """From here on mail is sealed and opened with these."""
        self._levels, self._keys = levels, keys
        self._take(self.known)

    def planner(self) -> Planner:
        """Asked for once for each mail."""
        return self._planner

    def layers(self) -> Layers:
        """Asked for once for each mail."""
        return self._layers

    def config(self) -> Config:
        """The configuration with the current peers."""
        return self.known.config

    def stamps(self) -> Stamps:
        """What differs once a document, key or certificate has changed."""
        return site_stamps(self._settings())

    def read_again(self) -> KnownSites:
        """What the files say now: `domains` have it, and nothing else goes by it yet."""
        self.read_at = self.stamps()
        sites = self.known.read_again(self._settings())
        if (domains := _with_former(sites.config.peer_domains, self.domains)) != self.domains:
            self.domains = domains
            self._keep()
        return sites

    def _keep(self) -> None:
        if self._former is not None:
            self._former.write(self.domains)

    def take(self, sites: KnownSites) -> None:
        """From the next mail on this counts; to be called in the event loop."""
        assert self._keys is not None  # noqa: S101 - a serving relay has called `use`
        sites.tell_of_changes(self.known)
        # The keys first: a mail that is planned for a new peer must not fall to another level for want of them.
        self._keys.set_peers({name: peer_keys(peer) for name, peer in sites.config.peers.items()})
        self._take(sites)

    def _take(self, sites: KnownSites) -> None:
        assert self._keys is not None  # noqa: S101 - as above
        self.known = sites
        site = (sites.identity, sites.certificates)
        self._planner = Planner(sites.config, self._levels, *site)
        self._layers = Layers(sites.config, self._levels, self._keys, *site)


def _with_former(now: Domains, before: Domains) -> dict[str, tuple[str, ...]]:
    """The peers' domains, and those that no longer belong to anybody, as a peer's that nothing else knows.

    Mail to these is held as long as the relay runs: policies for everybody that let mail out in clear are not for them.
    """
    found = {name: tuple(map(folded_domain, domains)) for name, domains in now.items()}
    owned = {domain for domains in found.values() for domain in domains}
    for name, domains in before.items():
        if former := tuple(each for each in domains if each not in owned):
            whose = f"{name} before" if name in now else name
            found[whose] = (*found.get(whose, ()), *former)
    return found


class Reloading:
    """Looks at files, and has what was made of them made anew; works in the thread that follows policies' edits."""

    def __init__(
        self, settings: Settings, sites: SitesInForce, policies: PoliciesInForce, others: Sequence[Reloadable]
    ) -> None:
        """To be made in the event loop."""
        self._settings, self._sites, self._policies = settings, sites, policies
        self._loop = asyncio.get_running_loop()
        self._asked = False
        self._looked_at = float("-inf")
        self._watched = [
            (_WatchedFiles(sites), self._reload_sites),
            *((_WatchedFiles(each), each.reload) for each in others),
        ]

    def ask(self) -> None:
        """SIGHUP: everything is read again, whether it has changed or not."""
        self._asked = True
        self._policies.reload()

    def look(self) -> None:
        """One look at all files, and what follows from it; raises nothing."""
        now = time.monotonic()
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
            except Exception as error:  # what it concerns stays as it was, and all else goes on
                if watched.trouble != (trouble := f"{type(error).__name__}: {error}"):
                    log.error("not_reloaded", what=type(watched.what).__name__, cause=trouble, exc_info=error)
                watched.trouble = trouble

    def _reload_sites(self) -> None:
        self._loop.call_soon_threadsafe(self._sites.take, self._sites.read_again())
        self._policies.set_peers(self._sites.domains)


class _WatchedFiles:
    """Whether files have changed, and are quiet, so that they are to be read."""

    def __init__(self, what: Reloadable | SitesInForce) -> None:
        self.what = what
        self.trouble = ""
        self._seen, self._changed_at = what.read_at, float("-inf")

    def is_to_be_read(self, now: float) -> bool:
        """Once for each change; `now` in seconds."""
        read_at, stamps = self.what.read_at, self.what.stamps()
        if stamps != self._seen:
            self._seen, self._changed_at = stamps, now
        gone = any(stamp is not None and _is_gone(path, stamps) for path, stamp in read_at.items())
        return stamps != read_at and now - self._changed_at >= (GONE_QUIET_S if gone else QUIET_S)


def _is_gone(path: Path, stamps: Stamps) -> bool:
    """Whether the file is gone; False where its directory cannot be searched."""
    return stamps.get(path) is None and not isinstance(stamps.get(path.parent), Unknown)
