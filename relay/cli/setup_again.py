"""`qumail-relay setup` with an existing relay.toml: compares the flags with it.
The same answers change nothing; a different answer needs --replace, and is never ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from relay.config import Config
from relay.config.ports import OUTGOING, PORT_BASE, Ports
from relay.config.values import parse_domain, parse_next_hop
from relay.errors import ConfigError
from relay.files.credentials import credential_name
from relay.keys.development import from_development_kme
from relay.postfix.ours import site_ports
from relay.setup.answers import Integration, SecretPlace
from relay.setup.asking import read_file
from relay.setup.backups import changed_last
from relay.setup.policies import EVERYBODY
from relay.setup.questions import DEVELOPMENT, NONE


def another_answer(config: Config, flags: dict[str, Any]) -> str:
    """The first flag that contradicts the existing site, "" for none.

    Raises ConfigError, and UsageError for an invalid domain or next hop.
    """
    try:
        return next(_differing(config, flags), "")
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def postfix_of(config: Config, beside: Path) -> str | None:
    """The directory of the Postfix that relay.toml names, or None.

    An older relay.toml names none; then the backups that setup keeps `beside` it tell.
    """
    return str(config.postfix.directory) if config.postfix is not None else changed_last(beside)


def as_it_is(config: Config, flags: dict[str, Any], beside: Path) -> dict[str, Any]:
    """The flags of --replace, completed from the existing site and the files `beside` relay.toml."""
    site, outgoing, ports = config.site, config.outgoing, site_ports(config)
    integration = integration_of(config)
    said: dict[str, Any] = {
        "domains": site.domains,
        "name": site.name,
        "sae_id": site.sae_id,
        "integration": integration,
        "everybody": _everybody(config.policies.directory / "default.toml"),
        "postmaster": config.alarms.mail_to or (NONE,),
        "secret": secret_place(config),
        "postfix": postfix_of(config, beside) or (None if flags["apply_postfix"] else NONE),
    }
    if integration == "smarthost" and outgoing is not None and flags["integration"] in (None, integration):
        said["next_hop"] = str(outgoing.next_hop[0])
    if flags["kme"] is None:
        said |= _kme_as_it_is(config)
    if ports:
        said["port_base"] = _port_base(ports)
    return {name: said[name] if name in said and not value else value for name, value in flags.items()}


def _kme_as_it_is(config: Config) -> dict[str, Any]:
    kme = config.kmes.get("kme")
    if kme is None:
        return {"kme": NONE}
    if kme.psk_file is not None:
        raise ConfigError(
            "kmes.kme has a pre-shared key, which setup does not write: edit relay.toml by hand, or give --kme anew"
        )
    files = {"kme_ca": kme.ca, "kme_certificate": kme.certificate, "kme_key": kme.key}
    return {"kme": kme.url, "kme_group": kme.group, **files}


def _everybody(default: Path) -> str:
    """The answer that this file was written for; an edited file counts as "hold", and is kept."""
    if not default.exists():
        return "hold"
    text = default.read_text(encoding="utf-8", errors="replace")
    return next((answer for answer, written in EVERYBODY.items() if text == written), "hold")


def integration_of(config: Config) -> Integration:
    """How mail reaches the relay."""
    outgoing = config.outgoing
    if outgoing is not None and outgoing.milter:
        return "milter"
    return "content-filter" if outgoing is not None and outgoing.lmtp else "smarthost"


def secret_place(config: Config) -> SecretPlace:
    """The place of the site secret."""
    return "credential" if credential_name(config.store.secret) else "file"


def _differing(config: Config, flags: dict[str, Any]) -> Iterator[str]:
    site, outgoing = config.site, config.outgoing
    if flags["domains"] and {parse_domain(each) for each in flags["domains"]} != set(site.domains):
        yield "domain"
    hop = str(outgoing.next_hop[0]) if outgoing is not None else ""
    said = {
        "name": site.name, "sae_id": site.sae_id, "integration": integration_of(config), "secret": secret_place(config)
    }  # fmt: skip
    yield from (name.replace("_", "-") for name, value in said.items() if flags[name] not in (None, value))
    if flags["next_hop"] and str(parse_next_hop(flags["next_hop"])) != hop:
        yield "next-hop"
    if flags["everybody"] and _everybody_differs(config.policies.directory / "default.toml", flags["everybody"]):
        yield "everybody"
    if not set(flags["postmaster"]) <= set(config.alarms.mail_to or (NONE,)):
        yield "postmaster"
    named = config.postfix.directory if config.postfix is not None else None
    if named and flags["postfix"] and (flags["postfix"] == NONE or Path(flags["postfix"]).absolute() != named):
        yield "postfix"
    yield from _kme_differs(config, flags)
    ports = site_ports(config)
    if flags["port_base"] not in (None, ports and _port_base(ports)):
        yield "port-base"


def _port_base(ports: tuple[Ports, Ports]) -> int:
    return ports[0].lmtp - OUTGOING.lmtp + PORT_BASE


def _everybody_differs(default: Path, answer: str) -> bool:
    """Whether the file was written for another answer; an edited file is the administrator's, and fits all."""
    if not default.exists():
        return answer != "hold"
    text = default.read_text(encoding="utf-8", errors="replace")
    return any(text == written for other, written in EVERYBODY.items() if other != answer)


def _kme_differs(config: Config, flags: dict[str, Any]) -> Iterator[str]:
    kme, where = config.kmes.get("kme"), flags["kme"]
    if where == NONE:
        same = kme is None
    elif where == DEVELOPMENT:
        same = kme is not None and from_development_kme(kme.ca)
    else:
        same = where is None or (kme is not None and kme.url == where.rstrip("/"))
    if not same:
        yield "kme"
    if kme is None:
        return
    if flags["kme_group"] not in (None, kme.group):
        yield "kme-group"
    for name, copy in (("kme_ca", kme.ca), ("kme_certificate", kme.certificate), ("kme_key", kme.key)):
        if flags[name] is not None and (copy is None or read_file(flags[name]) != read_file(copy)):
            yield name.replace("_", "-")
