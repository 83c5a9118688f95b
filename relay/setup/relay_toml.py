"""Writes the relay.toml of a new site: only what differs from the defaults, each table with its purpose.
Standard: TOML 1.0; JSON strings are TOML basic strings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from relay.config.ports import INCOMING, OUTGOING, STATUS
from relay.setup.answers import Answers, SitePaths


def relay_toml(answers: Answers, places: SitePaths) -> str:
    """The text; paths below the configuration's directory are relative to it."""
    lines = [
        "# The settings of this relay, as `qumail-relay setup` has written them. What is not here has its default:",
        "# deploy/SETTINGS.md explains every setting (by package: /usr/share/doc/qumail-relay/deploy/SETTINGS.md).",
        "# After an edit: qumail-relay check, and restart the relay; peers, aliases and DKIM keys count at a reload.",
        *_site(answers),
        *_directions(answers),
        *_places(places, answers.credentials),
        *_kme(answers),
        *_watching(answers),
        *(postfix_lines(answers.postfix) if answers.postfix is not None else ()),
    ]
    return "\n".join(lines) + "\n"


def postfix_lines(directory: Path) -> Iterator[str]:
    """The lines that name the Postfix beside the relay."""
    yield from ("", "# The Postfix beside the relay, which is watched: does all mail still go through the relay?")
    yield from _table("postfix", directory=str(directory))


def _site(answers: Answers) -> Iterator[str]:
    yield from ("", "# Who we are: a name for logs and documents, our mail domains, and what our KME calls this relay.")
    yield from _table("site", name=answers.name, domains=list(answers.domains), sae_id=answers.sae_id)


def _directions(answers: Answers) -> Iterator[str]:
    at = answers.address
    if answers.integration == "smarthost":
        yield from ("", "# Mail that leaves: mail servers and programs of this host send it here, it goes on sealed.")
        yield from _table("outgoing", listen=at(OUTGOING.listen), next_hop=answers.next_hop)
    elif answers.integration == "milter":
        yield from ("", "# Mail that leaves: Postfix asks about it; what cannot take its place goes to the next hop.")
        yield from _table("outgoing", milter=at(OUTGOING.milter), next_hop=at(OUTGOING.back))
        yield from ("", "# Mail that arrives: opened where it is sealed for us.")
        yield from _table("incoming", milter=at(INCOMING.milter), next_hop=at(INCOMING.back))
    else:
        yield from ("", "# Mail that leaves: from Postfix's queue by LMTP, and sealed back into it.")
        yield from _table("outgoing", lmtp=at(OUTGOING.lmtp), next_hop=at(OUTGOING.back))
        yield from ("", "# Mail that arrives: opened where it is sealed for us.")
        yield from _table("incoming", lmtp=at(INCOMING.lmtp), next_hop=at(INCOMING.back))


def _places(places: SitePaths, credentials: Path | None) -> Iterator[str]:
    def path(name: str) -> str:
        whole = places.state / name
        inside = whole.is_relative_to(places.directory)
        return str(whole.relative_to(places.directory) if inside else whole)

    yield from ("", "# Who gets which level: one file for each domain or person (policies/README.md).")
    yield from _table("policies", directory="policies")
    secret, identity = path("site.secret"), {"directory": path("identity"), "peers_directory": path("peers")}
    if credentials is not None:
        secret = str(credentials / "site.secret")
        identity["passphrase"] = str(credentials / "identity.passphrase")
    yield from ("", "# What must survive a crash, and the secret that seals it: keep the two apart in backups.")
    yield from _table("store", database=path("relay.db"), secret=secret)
    yield from ("", "# Our keys and certificates, and the documents of our peers.")
    yield from _table("identity", **identity)


def _kme(answers: Answers) -> Iterator[str]:
    if answers.kme is None:
        yield from ("", "# No [kmes.NAME]: without quantum keys there are levels pqc and rsa.")
        return
    yield from ("", "# Where our quantum keys come from, and how the KME knows us.")
    settings = {"url": answers.kme.url}
    if answers.kme.group != "default":
        settings["group"] = answers.kme.group
    files = {"ca": "kme/ca.pem", "certificate": "kme/sae.pem", "key": "kme/sae.key"}
    yield from _table("kmes.kme", **settings, **files)


def _watching(answers: Answers) -> Iterator[str]:
    if answers.postmaster:
        yield from ("", "# Who is notified by mail when something is wrong, beside log, metrics and `check`.")
        yield from _table("alarms", mail_to=list(answers.postmaster))
    yield from ("", "# Where the relay shows how it is: a page for people, /metrics and /readyz.")
    yield from _table("status", listen=answers.address(STATUS))


def _table(table: str, /, **settings: str | list[str]) -> Iterator[str]:
    yield f"[{table}]"
    yield from (f"{setting} = {json.dumps(value, ensure_ascii=False)}" for setting, value in settings.items())


def kme_files(directory: Path) -> tuple[Path, Path, Path]:
    """Returns the paths of the KME's CA, certificate and key."""
    return directory / "kme" / "ca.pem", directory / "kme" / "sae.pem", directory / "kme" / "sae.key"
