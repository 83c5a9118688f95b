"""`check` on peers and levels, one line each, and the next commands to run.
Uses no key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from relay.cli.units import how_to
from relay.config import Config
from relay.errors import ConfigError, KMEUnreachable
from relay.files.commands import command
from relay.identity import PeerCertificates, only_sending, own_identity
from relay.journey.planner import Planner
from relay.keys.development import from_development_kme
from relay.levels import SEALING, LevelName
from relay.schemes.all import all_schemes
from relay.smime.sealing import SMIMESealer

State = tuple[str, str, tuple[str, ...]]
"""A finding: what was looked at, its state, and its problems, if any."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Hosts of this site's own development key servers."""
NOBODY = "nobody listens"
RESTART = "it was started with other settings; restart it"


def planner_of(config: Config, certificates: Mapping[str, PeerCertificates]) -> Planner:
    """Tells which levels are possible for which peers."""
    identity = smime = None
    with suppress(ConfigError):  # reported elsewhere
        identity = own_identity(config)
    with suppress(ConfigError):
        smime = SMIMESealer.of(config)
    return Planner(config, all_schemes(config), identity, certificates, smime)


def peer_states(config: Config, certificates: Mapping[str, PeerCertificates]) -> Iterator[State]:
    """One line for each peer, with what it shares with us, and one for each level, with its peers."""
    planner = planner_of(config, certificates)
    without_keys = config.peers_without_keys
    for name, peer in config.peers.items():
        can = [level for level in SEALING if not planner.obstacle_for_peer(name, level)]
        groups = f"KME group {', '.join(peer.kme_groups)}" if peer.kme_groups else "no quantum keys"
        detail = f"{', '.join(peer.domains)}; SAE {peer.sae_id}; levels {', '.join(can) or 'none'}; {groups}"
        problems = [without_keys[name]] if name in without_keys else []
        if name in only_sending(certificates):
            detail = (
                f"{', '.join(peer.domains)}; SAE {peer.sae_id}; cannot receive, by its document: its mail is refused"
            )
            problems = []
        elif not can:
            problems.append("nothing can be sealed for it: it shares no KME group with us, and no document is pinned")
        yield f"peer {name}", detail, tuple(problems)
    if not config.peers and config.smime is None:
        yield "peers", "none yet: all mail that policy does not let out in clear is held or refused", ()
    yield from (_level(config, planner, level) for level in SEALING)


def _level(config: Config, planner: Planner, level: LevelName) -> State:
    obstacles = {name: planner.obstacle_for_peer(name, level) for name in config.peers}
    able = [name for name, obstacle in obstacles.items() if not obstacle]
    unable = [f"{name}: {obstacle}" for name, obstacle in obstacles.items() if obstacle]
    detail = f"for {', '.join(able)}" if able else "for nobody"
    return f"level {level}", "; ".join((detail, *(f"not for {each}" for each in unable))), ()


def summary(states: Sequence[State]) -> str:
    """The first line: how many things were checked, and which are wrong."""
    wrong = list(dict.fromkeys(title for title, _, problems in states if problems))
    if not wrong:
        return f"All {len(states)} things that were looked at are well."
    return f"{len(wrong)} of {len(states)} things that were looked at are wrong: {', '.join(wrong)}."


def next_steps(config_file: Path, config: Config | None, states: Iterable[State]) -> Iterator[str]:
    """The commands to run next, in order: faults before the start."""

    def relay(*words: str | Path) -> str:
        return command("qumail-relay", *words[:2], "--config", config_file, *words[2:])

    check = command("qumail-relay", "check", "--config", config_file)
    states = list(states)
    if config is None and not config_file.exists():
        yield f"set this site up: {command('qumail-relay', 'setup', '--config', config_file)}"
        return
    if config is None:
        of_itself = any(
            config_file.name in problem
            for title, _, problems in states
            if title == "configuration"
            for problem in problems
        )
        yield f"{f'edit {config_file}' if of_itself else 'fix what is wrong'}, then: {check}"
        return
    if config.identity is not None and not config.identity.directory.exists():
        yield f"make keys and certificates: {relay('identity', 'new')}"
    if not config.peers:
        yield f"invite the other site: {relay('identity', 'invite')}"
        yield f"take the other site in: {relay('identity', 'accept', 'FILE')}"
    here = {name: kme for name, kme in config.kmes.items() if urlsplit(kme.url).hostname in LOOPBACK}
    development = {f"KME {name}" for name, kme in here.items() if from_development_kme(kme.ca)}
    away = {
        title for title, _, problems in states if any(each.startswith(KMEUnreachable.__name__) for each in problems)
    }
    if development & away:
        yield "run the development key servers: qumail-relay kme"
    listeners = [(detail, problems) for title, detail, problems in states if title.startswith("listener ")]
    restart = any(problem.endswith(RESTART) for _, problems in listeners for problem in problems)
    faults = any(not problem.endswith(RESTART) for _, _, problems in states for problem in problems)
    if restart:
        yield f"restart the relay: {how_to('restart', config_file)}"
    if faults or restart:
        yield f"fix what is wrong, then: {check}"
    if not restart and any(detail.endswith(NOBODY) and not problems for detail, problems in listeners):
        yield f"start the relay: {how_to('start', config_file)}"
