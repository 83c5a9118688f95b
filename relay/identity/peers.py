"""The pinned peers: a directory with one document for each peer, and rules for new documents.
Trust on first use after a comparison of fingerprints, then as strictly as OpenSSH's known_hosts.

A document does not prove that its domains are the peer's. Each domain needs confirmation by the local administrator,
in the first document and in later ones.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from cryptography import x509

from relay.config import Config, IdentitySettings, PeerSettings
from relay.config.tables import DOCUMENT_SUFFIX
from relay.errors import ConfigError
from relay.files.commands import command
from relay.files.stamps import files_in, is_there
from relay.identity import files
from relay.identity.certificates import UNREADABLE, valid_now
from relay.identity.directory import read_certificate
from relay.identity.document import BadDocument, ChangedKey, PeerCertificates, PinRefused, Rollback, read_document
from relay.identity.further import public_keys_in
from relay.identity.pairs import Role, subject_key_identifier
from relay.identity.x509_keys import infos_of, key_of

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

COMPARE = "Is this the fingerprint that the other site reads to you?"
ONE_SAE_ID = (
    "no two sites have the same, so one of them is wrong: correct it ([site] sae_id is how our own KME knows us), or "
    "have them correct it and send a new invitation"
)

Change = Literal["new", "same", "newer", "replaced"]
"""The effect of an import: pins a new peer, nothing, updates one, or (--replace only) rolls back or changes keys."""


@dataclass(frozen=True)
class Import:
    """A document that may be pinned as `peer.name`; its own name of the site, the pinned document, the change.

    `added` are the domains to confirm: neither the pinned document nor relay.toml has them for the peer.
    """

    peer: PeerCertificates
    site: str
    before: PeerCertificates | None
    change: Change
    added: tuple[str, ...]

    @property
    def question(self) -> str:
        """The question to confirm before pinning, or "".

        An update by the pinned keys needs no telephone call. Fewer domains or another SAE ID must be confirmed. Domains
        in `added` are asked about one by one.
        """
        if self.change == "same":
            return ""
        if self.change != "newer" or self.before is None:
            return COMPARE
        if set(self.before.domains) <= set(self.peer.domains) and self.before.sae_id == self.peer.sae_id:
            return ""
        return "It is by the pinned keys, with fewer domains or another SAE ID. Is that right?"


def load_peer_documents(directory: Path) -> dict[str, PeerCertificates]:
    """All pinned peers by name; none if the directory is missing.

    Expired certificates are no error here. Raises ConfigError with a line for each file at fault.
    """
    if not is_there(directory):
        return {}
    files.check_directory(directory)
    peers, faults = {}, []
    for path in files_in(directory, "*" + DOCUMENT_SUFFIX):
        try:
            peers[path.stem] = dataclasses.replace(read_document(files.read_public(path)), name=path.stem)
        except BadDocument as error:
            remedy = f"move it away, and import the peer's document again: {_import(path.stem)}"
            faults += [f"{path}: {text}: {remedy}" for text in error.problems]
        except ConfigError as error:
            faults += [f"{path}: {text.removeprefix(f'{path}: ')}" for text in error.problems]
    if faults:
        raise ConfigError(faults)
    return peers


def _import(name: str) -> str:
    return command("qumail-relay", "identity", "import", "--name", name, "FILE")


def trusted_peers(config: Config) -> dict[str, PeerCertificates]:
    """The pinned peers of a configuration; none without [identity].

    Raises ConfigError, also if one contradicts relay.toml or another one: then the owner of mail is ambiguous.
    """
    if config.identity is None:
        return {}
    peers = load_peer_documents(config.identity.peers_directory)
    owned = owners_of_names(config.identity.directory, peers.values())
    faults = [
        f"{document_file(config.identity.peers_directory, name)}: {text}"
        for name, peer in peers.items()
        for text in _contradictions(config, peers, owned, peer)
    ]
    if faults:
        raise ConfigError(faults)
    return peers


def with_documents(config: Config) -> tuple[Config, dict[str, PeerCertificates]]:
    """The configuration with the imported peers, and their certificates.

    Settings in [peers.*] take precedence over the document. Raises ConfigError.
    """
    certificates = trusted_peers(config)
    return joined(config, certificates), certificates


def joined(config: Config, certificates: Mapping[str, PeerCertificates]) -> Config:
    """The configuration with these peers beside those of relay.toml, for `with_documents`."""
    peers = dict(config.peers)
    for name, document in certificates.items():
        table = peers.get(name, PeerSettings())
        settings = {"domains": table.domains or document.domains, "sae_id": table.sae_id or document.sae_id}
        peers[name] = _with_groups(table.model_copy(update=settings), common_groups(config, document))
    # The table of a peer whose document is gone may be incomplete.
    peers = {name: peer for name, peer in peers.items() if peer.domains and peer.sae_id}
    config = config.model_copy(update={"peers": peers})
    if (group := config.sole_kme_group) is not None:
        # The pinned document decides about groups: one that the peer lacks would hold all mail.
        peers = {name: peer if name in certificates else _with_groups(peer, (group,)) for name, peer in peers.items()}
    return config.model_copy(update={"peers": peers})


def _with_groups(table: PeerSettings, groups: tuple[str, ...]) -> PeerSettings:
    """Returns the peer with these KME groups unless relay.toml sets them; an empty list there means none."""
    if not groups or "kme_groups" in table.model_fields_set:
        return table
    return table.model_copy(update={"kme_groups": groups})


def examine(config: Config, raw: bytes, *, name: str | None = None, replace: bool = False, now: datetime) -> Import:
    """The effect of importing this document under `name` (its own by default); changes nothing.

    Raises BadDocument, Rollback, ChangedKey, or PinRefused for any other objection.
    """
    document = read_document(raw)
    name = document.name if name is None else name
    peer = dataclasses.replace(document, name=name)
    if not _NAME.fullmatch(name):
        raise PinRefused(
            f"{name[:80]!r} cannot be a peer's name here: choose one of letters, digits, '.', '_', '-' (--name)"
        )
    for role, certificate in (("ca", peer.ca), *peer.certificates.items()):
        if not valid_now(certificate, now):
            dates = f"{certificate.not_valid_before_utc:%Y-%m-%d} to {certificate.not_valid_after_utc:%Y-%m-%d}"
            raise PinRefused(f"certificate {role}: valid from {dates}, so not now")
    pinned = load_peer_documents(_files(config).peers_directory)
    owned = owners_of_names(_files(config).directory, pinned.values())
    if faults := list(_contradictions(config, pinned, owned, peer)):
        raise PinRefused(faults)
    before, table = pinned.get(name), config.peers.get(name)
    known_domains = {*(before.domains if before is not None else ()), *(table.domains if table is not None else ())}
    added = tuple(domain for domain in peer.domains if domain not in known_domains)
    return Import(peer, document.name, before, _change(before, peer, replace=replace), added)


def pin(
    config: Config,
    raw: bytes,
    *,
    name: str | None = None,
    replace: bool = False,
    confirmed: Collection[str],
    now: datetime,
) -> Import:
    """Examines the document again and pins it; each domain must be `confirmed` (A-labels) or already known.

    Raises what `examine` raises, PinRefused for another domain, and ConfigError.
    """
    directory = _files(config).peers_directory
    with files.changing(directory):
        examined = examine(config, raw, name=name, replace=replace, now=now)
        if more := [domain for domain in examined.added if domain not in confirmed]:
            raise PinRefused(f"the document names {', '.join(more)}, which nobody here has confirmed")
        if examined.change != "same":
            files.write(document_file(directory, examined.peer.name), raw)
    return examined


def common_groups(config: Config, peer: PeerCertificates) -> tuple[str, ...]:
    """The KME groups of both sites; without one only pqc and rsa are possible."""
    ours = {kme.group for kme in config.kmes.values()}
    return tuple(group for group in peer.kme_groups if group in ours)


def _contradictions(
    config: Config, pinned: Mapping[str, PeerCertificates], owned: Owners, peer: PeerCertificates
) -> Iterator[str]:
    """Contradictions of a peer's document with relay.toml, this site's identity and the other pinned documents."""
    if table := config.peers.get(peer.name):
        if table.sae_id not in ("", peer.sae_id):
            yield f"the document says SAE {peer.sae_id!r}, [peers.{peer.name}] says {table.sae_id!r}"
        if table.kme_groups and not set(table.kme_groups) & set(peer.kme_groups):
            groups = ", ".join(peer.kme_groups) or "none"
            yield f"[peers.{peer.name}] says KME group {table.kme_groups[0]!r}, the document says {groups}"
        if missing := set(table.domains) - set(peer.domains):
            yield f"[peers.{peer.name}] has the domain {min(missing)}, which is not in the document"
    domains = dict.fromkeys(config.site.domains, "this site")
    saes = {config.site.sae_id: "this site"}
    others: dict[str, PeerSettings | PeerCertificates] = {**config.peers, **pinned}
    for name, other in others.items():
        if name != peer.name:
            domains |= dict.fromkeys(other.domains, f"peer {name}")
            saes[other.sae_id] = f"peer {name}"
    for domain in peer.domains:
        if owner := domains.get(domain):
            yield f"the domain {domain} already belongs to {owner}"
    if owner := saes.get(peer.sae_id):
        yield f"the SAE {peer.sae_id!r} already belongs to {owner}; {ONE_SAE_ID}"
    yield from names_of_others(peer, owned)


def _change(before: PeerCertificates | None, peer: PeerCertificates, *, replace: bool) -> Change:
    if before is None:
        return "new"
    if before == peer:
        return "same"
    follows = before.pinned_keys == peer.pinned_keys and peer.serial > before.serial
    if follows or replace:
        return "newer" if follows else "replaced"
    if before.pinned_keys != peer.pinned_keys:
        raise ChangedKey(
            f"its CA or signing key is another one than that pinned for {before.name} ({before.fingerprint}): "
            "ask the peer over the telephone, and use --replace only if it changed its keys"
        )
    raise Rollback(
        f"serial number {peer.serial} of {peer.issued:%Y-%m-%d} is not newer than the pinned {before.serial} of "
        f"{before.issued:%Y-%m-%d}: ask the peer for its newest document (--replace imports this one all the same)"
    )


def _files(config: Config) -> IdentitySettings:
    if config.identity is None:
        raise ConfigError("relay.toml has no [identity] table, which says where keys and peers' documents are kept")
    return config.identity


def document_file(directory: Path, name: str) -> Path:
    """Returns the path of a peer's pinned document."""
    return directory / (name + DOCUMENT_SUFFIX)


Name = tuple[str, bytes]
"""A unique identifier of a certificate or key: its kind in words, and its octets."""
Owners = dict[Name, list[str]]
"""The owners of each name, in words."""


def owners_of_names(directory: Path, peers: Iterable[PeerCertificates]) -> Owners:
    """The owners of all names: this site, with its identity in `directory`, if any, and these peers.

    Raises ConfigError if a certificate of ours cannot be read.
    """
    owners: Owners = {name: ["this site"] for name in _ours(directory)}
    for peer in peers:
        for _, name in _names(peer):
            owners.setdefault(name, []).append(_description(peer))
    return owners


def names_of_others(peer: PeerCertificates, owned: Owners) -> Iterator[str]:
    """One line for each certificate and key of this peer that belongs to another owner."""
    faulty = set()
    for item, name in _names(peer):
        others = [owner for owner in owned.get(name, []) if owner != _description(peer)]
        if others and item not in faulty:
            faulty.add(item)
            yield f"{item}: its {name[0]} already belongs to {others[0]}"


def _description(peer: PeerCertificates) -> str:
    return f"peer {peer.name}"


def _names(peer: PeerCertificates) -> Iterator[tuple[str, Name]]:
    """Each certificate and each key of a further KEM in words, with its names."""
    for role, certificate in peer.certificates.items():
        for name in _certificate_names(certificate):
            yield f"certificate {role}", name
    for kem, key in peer.further_kems.items():
        yield f"KEM {kem}", _kem_name(key)


def _ours(directory: Path) -> Iterator[Name]:
    """Our names, including older pairs, which still open; does not read private keys."""
    for role in Role:
        for path in files_in(directory, f"{role}.*.pem"):
            try:
                yield from _certificate_names(read_certificate(path))
            except UNREADABLE as error:
                raise ConfigError(f"{path}: not a certificate that names a recipient or signer") from error
    yield from map(_kem_name, public_keys_in(directory))


def _certificate_names(certificate: x509.Certificate) -> Iterator[Name]:
    for info in infos_of(key_of(certificate)):
        yield "public key", info
    yield "subjectKeyIdentifier", subject_key_identifier(certificate)
    issuer, serial = certificate.issuer.public_bytes(), certificate.serial_number
    yield "pair of issuer and serial number", issuer + b"%d" % serial


def _kem_name(key: bytes) -> Name:
    return "public key", key
