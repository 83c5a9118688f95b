"""The pinned peers: one document a peer in a directory, and what a new document may change.
Trust on first use after a comparison of fingerprints, then as strict as OpenSSH's known_hosts.

A document names its domains itself, and nothing in it proves that they are the peer's. Each one counts once the
administrator here has confirmed it, in the first document and in later ones.
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
from relay.files.stamps import files_in, is_there
from relay.identity import files
from relay.identity.certificates import UNREADABLE, valid_now
from relay.identity.directory import read_certificate
from relay.identity.document import ChangedKey, PeerCertificates, PinRefused, Rollback, read_document
from relay.identity.further import public_keys_in
from relay.identity.pairs import Role, public_key, subject_key_identifier

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

COMPARE = "Is this the fingerprint that the other site reads to you?"
ONE_SAE_ID = (
    "no two sites have the same, so one of them is wrong: correct it ([site] sae_id is how our own KME knows us), or "
    "have them correct it and send a new invitation"
)

Change = Literal["new", "same", "newer", "replaced"]
"""What importing does: pins a new peer, nothing, updates one, or (--replace only) goes back or changes its keys."""


@dataclass(frozen=True)
class Import:
    """A document that may be pinned, as `peer.name`; what the site calls itself, what was pinned, what changes.

    `added` are the domains that have to be confirmed: neither the pinned document nor relay.toml has them for the peer.
    """

    peer: PeerCertificates
    site: str
    before: PeerCertificates | None
    change: Change
    added: tuple[str, ...]

    @property
    def question(self) -> str:
        """What a person has to say yes to before it is pinned: "", or a question.

        One that follows the pinned document, by the keys that are pinned, needs no telephone call. That it gives up
        domains, or has another SAE ID, has to be meant. Domains that are `added` are asked about one by one.
        """
        if self.change == "same":
            return ""
        if self.change != "newer" or self.before is None:
            return COMPARE
        if set(self.before.domains) <= set(self.peer.domains) and self.before.sae_id == self.peer.sae_id:
            return ""
        return "It is by the pinned keys, with fewer domains or another SAE ID. Is that right?"


def load_peer_documents(directory: Path) -> dict[str, PeerCertificates]:
    """All pinned peers by name; none where the directory is missing.

    Certificates that expired since are no error here. Raises ConfigError with a line for each file at fault.
    """
    if not is_there(directory):
        return {}
    files.check_directory(directory)
    peers, faults = {}, []
    for path in files_in(directory, "*" + DOCUMENT_SUFFIX):
        try:
            peers[path.stem] = dataclasses.replace(read_document(files.read_public(path)), name=path.stem)
        except ConfigError as error:
            faults += [f"{path}: {text.removeprefix(f'{path}: ')}" for text in error.problems]
    if faults:
        raise ConfigError(faults)
    return peers


def trusted_peers(config: Config) -> dict[str, PeerCertificates]:
    """The pinned peers of a configuration; none without [identity].

    Raises ConfigError, also where one contradicts relay.toml or another one: then nobody can say whose mail
    that is.
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
    """The configuration with the peers whose documents were imported, and the certificates in these.

    What [peers.*] says of such a peer counts; what it leaves open comes from the document. Raises ConfigError.
    """
    certificates = trusted_peers(config)
    return joined(config, certificates), certificates


def joined(config: Config, certificates: Mapping[str, PeerCertificates]) -> Config:
    """The configuration with these peers beside those of relay.toml, as `with_documents` says."""
    peers = dict(config.peers)
    for name, document in certificates.items():
        table = peers.get(name, PeerSettings())
        said = {"domains": table.domains or document.domains, "sae_id": table.sae_id or document.sae_id}
        peers[name] = _with_groups(table.model_copy(update=said), common_groups(config, document))
    # A table of one whose document is gone may name nobody any more.
    peers = {name: peer for name, peer in peers.items() if peer.domains and peer.sae_id}
    config = config.model_copy(update={"peers": peers})
    if (group := config.sole_kme_group) is not None:
        # What a pinned document says of its groups counts: a group that the peer has not got would hold all mail.
        peers = {name: peer if name in certificates else _with_groups(peer, (group,)) for name, peer in peers.items()}
    return config.model_copy(update={"peers": peers})


def _with_groups(table: PeerSettings, groups: tuple[str, ...]) -> PeerSettings:
    """Returns the peer with these KME groups where relay.toml leaves them open; an empty list there means none."""
    if not groups or "kme_groups" in table.model_fields_set:
        return table
    return table.model_copy(update={"kme_groups": groups})


def examine(config: Config, raw: bytes, *, name: str | None = None, replace: bool = False, now: datetime) -> Import:
    """What importing this document under `name` (its own by default) would do; changes nothing.

    Raises BadDocument, Rollback, ChangedKey, or PinRefused for everything else that speaks against it.
    """
    document = read_document(raw)
    name = document.name if name is None else name
    peer = dataclasses.replace(document, name=name)
    if not _NAME.fullmatch(name):
        raise PinRefused(
            f"{name[:80]!r} cannot be a peer's name here: choose one of letters, digits, '.', '_', '-' (--name)"
        )
    for what, certificate in (("ca", peer.ca), *peer.certificates.items()):
        if not valid_now(certificate, now):
            dates = f"{certificate.not_valid_before_utc:%Y-%m-%d} to {certificate.not_valid_after_utc:%Y-%m-%d}"
            raise PinRefused(f"certificate {what}: valid from {dates}, so not now")
    pinned = load_peer_documents(_files(config).peers_directory)
    owned = owners_of_names(_files(config).directory, pinned.values())
    if faults := list(_contradictions(config, pinned, owned, peer)):
        raise PinRefused(faults)
    before, table = pinned.get(name), config.peers.get(name)
    known = {*(before.domains if before is not None else ()), *(table.domains if table is not None else ())}
    added = tuple(domain for domain in peer.domains if domain not in known)
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
    """Examines the document again and pins it, with no domain that is neither `confirmed` (A-labels) nor known before.

    Raises what `examine` raises, PinRefused for another domain, and ConfigError.
    """
    directory = _files(config).peers_directory
    with files.changing(directory):
        found = examine(config, raw, name=name, replace=replace, now=now)
        if more := [domain for domain in found.added if domain not in confirmed]:
            raise PinRefused(f"the document names {', '.join(more)}, which nobody here has confirmed")
        if found.change != "same":
            files.write(document_file(directory, found.peer.name), raw)
    return found


def common_groups(config: Config, peer: PeerCertificates) -> tuple[str, ...]:
    """The KME groups that both sites have; without one only pqc and rsa are possible."""
    ours = {kme.group for kme in config.kmes.values()}
    return tuple(group for group in peer.kme_groups if group in ours)


def _contradictions(
    config: Config, pinned: Mapping[str, PeerCertificates], owned: Owners, peer: PeerCertificates
) -> Iterator[str]:
    """Why a peer's document cannot be true beside relay.toml, this site's identity and the other pinned documents."""
    if table := config.peers.get(peer.name):
        if table.sae_id not in ("", peer.sae_id):
            yield f"the document says SAE {peer.sae_id!r}, [peers.{peer.name}] says {table.sae_id!r}"
        if table.kme_groups and not set(table.kme_groups) & set(peer.kme_groups):
            known = ", ".join(peer.kme_groups) or "none"
            yield f"[peers.{peer.name}] says KME group {table.kme_groups[0]!r}, the document says {known}"
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
"""What a certificate or key can be told by: the kind in words, and octets that nobody else may have."""
Owners = dict[Name, list[str]]
"""Who has each name, in words."""


def owners_of_names(directory: Path, peers: Iterable[PeerCertificates]) -> Owners:
    """Whose each name is: this site's, whose identity lies in `directory` if it has one, and these peers'.

    Raises ConfigError where a certificate of ours cannot be read.
    """
    found: Owners = {name: ["this site"] for name in _ours(directory)}
    for peer in peers:
        for _, name in _names(peer):
            found.setdefault(name, []).append(_in_words(peer))
    return found


def names_of_others(peer: PeerCertificates, owned: Owners) -> Iterator[str]:
    """What of this peer belongs to somebody else: a line for each certificate and key at fault."""
    faulty = set()
    for what, name in _names(peer):
        others = [owner for owner in owned.get(name, []) if owner != _in_words(peer)]
        if others and what not in faulty:
            faulty.add(what)
            yield f"{what}: its {name[0]} already belongs to {others[0]}"


def _in_words(peer: PeerCertificates) -> str:
    return f"peer {peer.name}"


def _names(peer: PeerCertificates) -> Iterator[tuple[str, Name]]:
    """Each certificate and each key of a further KEM in words, with its names."""
    for role, certificate in peer.certificates.items():
        for name in _certificate_names(certificate):
            yield f"certificate {role}", name
    for kem, key in peer.further_kems.items():
        yield f"KEM {kem}", _kem_name(key)


def _ours(directory: Path) -> Iterator[Name]:
    """Older pairs, which still open, included; private keys are not needed."""
    for role in Role:
        for path in files_in(directory, f"{role}.*.pem"):
            try:
                yield from _certificate_names(read_certificate(path))
            except UNREADABLE as error:
                raise ConfigError(f"{path}: not a certificate that names a recipient or signer") from error
    yield from map(_kem_name, public_keys_in(directory))


def _certificate_names(certificate: x509.Certificate) -> Iterator[Name]:
    yield "public key", public_key(certificate)
    yield "subjectKeyIdentifier", subject_key_identifier(certificate)
    issuer, serial = certificate.issuer.public_bytes(), certificate.serial_number
    yield "pair of issuer and serial number", issuer + b"%d" % serial


def _kem_name(key: bytes) -> Name:
    return "public key", key
