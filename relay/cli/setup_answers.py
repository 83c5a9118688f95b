"""The answers of `qumail-relay setup`, from flags or questions, and tests of the KME and Postfix that they name.
Nothing is written before all answers are known to fit together.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from relay.cli import credentials
from relay.cli.as_relay import relay_rights
from relay.config import Config, load_config
from relay.config.ports import PORT_BASE
from relay.config.values import parse_domain, parse_mailbox, parse_next_hop
from relay.errors import ConfigError, KMEUnreachable
from relay.identity import read_document, with_documents
from relay.setup import questions
from relay.setup.answers import Answers, KMEAccess, SitePaths
from relay.setup.asking import Prompter, filled
from relay.setup.development import development_kme, sae_beside
from relay.setup.kme import check_files, look_at
from relay.setup.mail_server import planned_change
from relay.setup.questions import DEVELOPMENT, NONE
from relay.setup.relay_toml import relay_toml
from relay.setup.scanners import NoRow
from relay.setup.still_queued import StillQueued


def answers_of(
    asker: Prompter, flags: dict[str, Any], document: bytes | None, config_file: Path
) -> tuple[Answers, bytes | None]:
    """The answers, with questions for those that flags leave open, and the peer's document, if any."""
    domains = tuple(map(_parsed_domain, flags["domains"])) or questions.ask_domains(asker)
    if document is None and not flags["replace"]:
        document = questions.ask_peer(asker)
    peer = read_document(document) if document is not None else None
    usual = peer.kme_groups[0] if peer is not None and len(peer.kme_groups) == 1 else "default"
    group = flags["kme_group"] or usual
    if flags["kme"] is None and flags["yes"]:
        raise click.UsageError("--yes needs --kme: https://host:port, none, or development (which is NOT quantum)")
    if flags["kme"] is None:
        sae, kme = questions.ask_kme(asker, peer, group)
        sae = flags["sae_id"] or sae
    else:
        sae, kme = _kme(flags, group, peer.sae_id if peer is not None else None)
    if flags["integration"] is None:
        integration, next_hop = questions.ask_integration(asker)
    else:
        integration, next_hop = flags["integration"], ""
    next_hop = flags["next_hop"] or next_hop
    if (integration == "smarthost") != bool(next_hop):
        raise click.UsageError("--next-hop belongs to --integration smarthost, which needs it")
    if next_hop:
        _checked(parse_next_hop, next_hop)
    everybody = flags["everybody"] or questions.ask_everybody(asker)
    postmaster = _postmaster(flags["postmaster"], domains[0])
    name = flags["name"] or domains[0].partition(".")[0]
    # Without a KME the SAE ID only identifies this site to peers, and no other site has this domain.
    sae = sae or f"sae-{domains[0]}"
    postfix = questions.ask_postfix(asker) if flags["postfix"] is None else _place(flags["postfix"])
    port_base = flags["port_base"] or PORT_BASE
    answers = Answers(
        name, domains, sae, kme, integration, everybody, next_hop, postmaster, port_base, postfix,
        _credentials(asker, flags["secret"], config_file),
    )  # fmt: skip
    return answers, document


def _credentials(asker: Prompter, secret: str | None, config_file: Path) -> Path | None:
    """The directory for the credentials, None for files. Raises ConfigError if they are requested and unavailable."""
    place = secret
    if place is None and not credentials.why_none(config_file):
        place = questions.ask_secret(asker, tpm2=credentials.has_tpm2())
    return credentials.tried_place(config_file) if place == "credential" else None


def _place(flag: str) -> Path | None:
    """The directory that --postfix names."""
    return None if flag == NONE else Path(flag).absolute()


def _kme(flags: dict[str, Any], group: str, peer_sae: str | None) -> tuple[str, KMEAccess | None]:
    """As `questions.ask_kme`."""
    where, sae = flags["kme"], flags["sae_id"]
    if where == NONE:
        return sae or "", None
    if where == DEVELOPMENT:
        sae = sae or sae_beside(peer_sae)
        return sae, development_kme(sae, group)
    if sae is None:
        raise click.UsageError("--kme needs --sae-id")
    ca, certificate, key = (flags[name] for name in ("kme_ca", "kme_certificate", "kme_key"))
    if not where.startswith("https://") or None in (ca, certificate, key):
        raise click.UsageError("--kme https://host:port needs --kme-ca, --kme-certificate and --kme-key")
    check_files(ca, certificate, key)
    return sae, KMEAccess(where.rstrip("/"), ca, certificate, key, group)


def look_at_kme(answers: Answers, document: bytes | None, former: Config | None) -> None:
    """Asks the KME before anything is written, and prints faults that can be fixed.

    Raises ConfigError if an existing site, the `former`, would change to an SAE ID that the KME refuses.
    """
    if answers.kme is None:
        return
    where = answers.kme.url
    peer_sae = read_document(document).sae_id if document is not None else _known_peer(former)
    trouble = asyncio.run(look_at(answers.kme, answers.sae_id, peer_sae))
    refused = trouble and not trouble.startswith(KMEUnreachable.__name__)
    if refused and former is not None and former.kmes and former.site.sae_id != answers.sae_id:
        was = f"nothing was changed; before, this relay was SAE {former.site.sae_id!r}"
        raise ConfigError(f"{where}: {trouble}; {was}")
    line = f"WRONG  KME {where}: {trouble}" if trouble else f"ok     KME {where}"
    click.echo(f"\n{filled(line, ' ' * 7)}")


def _known_peer(config: Config | None) -> str | None:
    """The SAE ID of one of this site's peers, or None."""
    if config is None:
        return None
    with suppress(ConfigError), relay_rights(config):
        config, _ = with_documents(config)
    return next((peer.sae_id for peer in config.peers.values() if peer.sae_id), None)


def look_at_postfix(answers: Answers, places: SitePaths, flags: dict[str, Any]) -> None:
    """Plans the change before anything is written. Raises ClickException."""
    where = answers.postfix
    if where is None or flags["apply_postfix"] is False:
        return
    with suppress(ConfigError):
        config = load_config(places.config_file, relay_toml(answers, places))
        try:
            asyncio.run(planned_change(where, config, beside=places.directory, service=flags["postfix_service"]))
        except (NoRow, StillQueued) as error:
            raise click.ClickException(str(error)) from error


def _parsed_domain(text: str) -> str:
    return str(_checked(parse_domain, text))


def _postmaster(answers: tuple[str, ...], domain: str) -> tuple[str, ...]:
    """Recipients of alarms. Not asked for: every domain has this address (RFC 5321, 4.5.1)."""
    if answers == (NONE,):
        return ()
    addresses = tuple(str(_checked(parse_mailbox, each)) for each in answers or (f"postmaster@{domain}",))
    click.echo(f"\nAlarms are mailed to {', '.join(addresses)}; --postmaster names somebody else.")
    return addresses


def _checked(parse: Any, text: str) -> object:
    try:
        return parse(text)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
