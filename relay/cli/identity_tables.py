"""Output of `qumail-relay identity`: certificates, documents and requests.
Peers' text is printed without control characters, and never interpreted as markup.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from relay.cli.output import print_table
from relay.config import Config
from relay.identity import (
    Expiry,
    Identity,
    Import,
    PeerCertificates,
    common_groups,
    domains_of,
    key_identifier,
    lines_of,
    words_of,
)

_CHANGES = {
    "new": "A new peer: nothing is pinned under this name yet.",
    "same": "Already pinned, nothing to do.",
    "newer": "A newer document of the pinned peer; its CA and signing keys are the pinned ones.",
    "replaced": "IT REPLACES THE PINNED DOCUMENT, which is newer or has other keys.",
}


def print_identity(out: Console, identity: Identity, fingerprint: str) -> None:
    """Prints our certificates, and the `fingerprint` of the document for peers."""
    _print_table(out, "This site", identity)
    _print_kems(out, identity.offered_kems)
    if identity.older:
        out.print(f"Older encryption keys, kept for opening: {len(identity.older)}")
    _print_fingerprint(out, fingerprint)


def print_peer(out: Console, peer: PeerCertificates) -> None:
    """Prints a pinned peer's certificates and fingerprint."""
    title = f"Peer {peer.name}, document {peer.serial} of {peer.issued:%Y-%m-%d}, levels {_levels(peer)}"
    _print_table(out, title, peer)
    _print_kems(out, peer.further_kems)
    _print_fingerprint(out, peer.fingerprint)


def print_import(out: Console, config: Config, pinned: Import) -> None:
    """Prints a document that may be pinned, and what would change."""
    peer, before = pinned.peer, pinned.before
    called = "" if pinned.site == peer.name else f" (it calls itself {pinned.site})"
    out.print(f"Peer {peer.name}{called}, document {peer.serial} of {peer.issued:%Y-%m-%d}", soft_wrap=True)
    out.print(f"  domains     {', '.join(peer.domains)}", soft_wrap=True)
    out.print(f"  levels      {_levels(peer)}")
    out.print(f"  SAE         {peer.sae_id}")
    shared = ", ".join(common_groups(config, peer)) or "none, so no level with quantum keys"
    out.print(f"  KME groups  {', '.join(peer.kme_groups) or 'none'}; shared with us: {shared}", soft_wrap=True)
    if peer.further_kems:
        out.print(f"  KEMs        ml-kem-1024-p384, {', '.join(peer.further_kems)}")
    until = min(each.not_valid_after_utc for each in (peer.ca, *peer.certificates.values()))
    out.print(f"  valid until {until:%Y-%m-%d}")
    _print_fingerprint(out, peer.fingerprint)
    if before is not None and before.pinned_keys != peer.pinned_keys:
        out.print(f"Pinned now:  {before.fingerprint}", style="bold red", soft_wrap=True)
    out.print(_CHANGES[pinned.change], style="bold red" if pinned.change == "replaced" else "")


def print_requested(out: Console, requested: list[Path], directory: Path) -> None:
    """Prints the files for the organisation's CA, and where its certificates go."""
    out.print("Give these to your organisation's CA:")
    for path in requested:
        out.print(f"  {path}", soft_wrap=True)
    out.print(
        "A KEM's key cannot sign a request for itself: its .pub file is the public key, and the .cnf file says which "
        "extensions its certificate needs. The CA has to know composite ML-KEM and ML-DSA (OpenSSL 3.5 does not). "
        "Put the certificates, in PEM, beside the keys:"
    )
    certificates = {path.with_suffix(".pem") for path in requested}
    for path in sorted(certificates | {directory / "ca.pem"}):
        out.print(f"  {path}", soft_wrap=True)
    out.print("ca.pem is the certificate of the CA that issued them. Then see `qumail-relay identity show`.")


def identity_as_dict(
    identity: Identity, fingerprint: str, peers: Mapping[str, PeerCertificates], ending: list[Expiry]
) -> dict[str, Any]:
    """Everything, for programs; times are RFC 3339, `fingerprint` is that of the document for peers."""
    return {
        "fingerprint": fingerprint,
        "words": list(words_of(fingerprint)),
        "domains": list(identity.domains),
        "certificates": _certificates(identity),
        "kems": _kems(identity.offered_kems),
        "older": [pair.ski.hex() for pair in identity.older],
        "peers": {name: peer_as_dict(peer) for name, peer in peers.items()},
        "ending": [{"what": each.what, "days": each.days} for each in ending],
    }


def peer_as_dict(peer: PeerCertificates) -> dict[str, Any]:
    """The contents of a peer's document, for programs."""
    return {
        "name": peer.name,
        "fingerprint": peer.fingerprint,
        "words": list(words_of(peer.fingerprint)),
        "domains": list(peer.domains),
        "sae_id": peer.sae_id,
        "kme_groups": list(peer.kme_groups),
        "levels": list(peer.levels),
        "serial": peer.serial,
        "issued": peer.issued.isoformat(),
        "certificates": _certificates(peer),
        "kems": _kems(peer.further_kems),
    }


def _kems(public_keys: Mapping[str, bytes]) -> dict[str, str]:
    """The key identifier of each further KEM, as messages contain it."""
    return {name: key_identifier(public_key).hex() for name, public_key in public_keys.items()}


def _certificates(whose: Identity | PeerCertificates) -> dict[str, dict[str, str]]:
    every = {"ca": whose.ca, **{role.value: certificate for role, certificate in whose.certificates.items()}}
    return {
        name: {
            "serial_number": f"{certificate.serial_number:x}",
            "not_before": certificate.not_valid_before_utc.isoformat(),
            "not_after": certificate.not_valid_after_utc.isoformat(),
        }
        for name, certificate in every.items()
    }


def _levels(peer: PeerCertificates) -> str:
    return ", ".join(peer.levels) or "none: it cannot receive sealed mail, and mail to it is refused"


def _print_table(out: Console, title: str, whose: Identity | PeerCertificates) -> None:
    out.print(title, style="bold", soft_wrap=True)
    every = {**{role.label: certificate for role, certificate in whose.certificates.items()}, "CA": whose.ca}
    rows = ((what, f"{each.not_valid_after_utc:%Y-%m-%d}", ", ".join(domains_of(each))) for what, each in every.items())
    print_table(out, ("Certificate", "Valid until", "Domains"), rows)


def _print_kems(out: Console, public_keys: Mapping[str, bytes]) -> None:
    if public_keys:
        out.print(f"Further KEMs: {', '.join(public_keys)}")


def _print_fingerprint(out: Console, digits: str) -> None:
    out.print(f"Fingerprint: {digits}", style="bold", soft_wrap=True)
    out.print("In words:", style="bold")
    for line in lines_of(digits):
        out.print(f"  {line}", soft_wrap=True)
