"""Asks setup's questions, each with a sentence of explanation and a default if possible.
Six answers beside a Postfix. A KME with its files in one directory adds two, a peer with one domain three, a TPM2 one.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from relay.config import parse_next_hop
from relay.config.values import parse_domain
from relay.identity import PeerCertificates, read_document
from relay.identity.invitation import BEGIN, unquoted
from relay.keys.settings import checked_url
from relay.policy.file import Unprotected
from relay.postfix.settings import ADMIN_PATHS
from relay.setup.answers import Everybody, Integration, KMEAccess, SecretPlace
from relay.setup.asking import Prompter, pasted_invitation, read_file
from relay.setup.development import development_kme, sae_beside
from relay.setup.kme import check_ca, check_files, pair_beside
from relay.setup.peers import document_in

USUAL_POSTFIX = Path("/etc/postfix")
LATER, DEVELOPMENT, NONE = "later", "development", "none"
"""Answers that are words: no peer yet, the KMEs of `qumail-relay kme`, no KME or Postfix."""


def ask_domains(asker: Prompter) -> tuple[str, ...]:
    """The mail domains of the site."""
    why = (
        "The mail domains of this site: their users' mail is sealed for peers, and what peers seal for them is opened."
    )
    answer = asker.ask(why, "Mail domains, the first gives the site its name", usual_domain(), _domains)
    return _domains(answer)


def _domains(answer: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(parse_domain(word) for word in answer.replace(",", " ").split()))


def usual_domain() -> str | None:
    """Postfix's domain, else that of the host name; None if neither is one."""
    if postconf := shutil.which("postconf", path=":".join(ADMIN_PATHS)):
        try:
            said = subprocess.run([postconf, "-hx", "mydomain"], capture_output=True, text=True, check=True, timeout=30)  # noqa: S603
        except subprocess.SubprocessError:
            return None
        if (name := said.stdout.strip()) and name != "localdomain" and "." in name:
            return name.lower()
    host, dot, domain = socket.getfqdn().partition(".")
    return domain.lower() if dot and host and domain not in ("localdomain", "") else None


def ask_peer(asker: Prompter) -> bytes | None:
    """The document of the first peer, from a file or pasted; None if there is none yet."""
    why = (
        "The other site with which you share keys. Paste its invitation (the whole block), or name the file of it, or "
        "of its peer document. Neither is secret. Without one yet: later, with `qumail-relay identity accept`."
    )
    pasted: list[bytes] = []

    def read(answer: str) -> None:
        if answer == LATER:
            return
        raw = pasted_invitation(answer) if unquoted(answer) == BEGIN else read_file(Path(answer))
        document = document_in(raw)
        read_document(document)
        pasted.append(document)

    asker.ask(why, "Invitation of the other site", LATER, read)
    return pasted[-1] if pasted else None


def ask_kme(asker: Prompter, peer: PeerCertificates | None, group: str) -> tuple[str, KMEAccess | None]:
    """Our SAE ID, "" if no KME needs one, and the KME's address and files."""
    why = (
        "The KME gives this site its quantum keys (ETSI GS QKD 014). Write its address (https://...), `none` to have "
        "none, or `development` for those that `qumail-relay kme` runs on this machine, which are NOT quantum and for "
        "trying out alone."
    )
    where = asker.ask(why, "KME", None, _kme_place)
    if where == DEVELOPMENT:
        sae = sae_beside(peer.sae_id if peer else None)
        return sae, development_kme(sae, group)
    if where == NONE:
        return "", None
    sae = asker.ask("The name under which the KME knows this relay.", "SAE ID", None)

    def file(why: str, question: str, read: Callable[[Path], object] = read_file) -> Path:
        return Path(asker.ask(f"{why} It is copied.", question, None, lambda answer: read(Path(answer))))

    ca = file("A file with the CA that the KME's certificate is from, in PEM.", "CA file", check_ca)
    if (pair := pair_beside(ca)) is not None:
        certificate, key = pair
        asker.say(
            f"Certificate and private key beside it, which belong together: {certificate}, {key}. They are copied."
        )
    else:
        certificate = file("A file with the certificate that the KME has given us, in PEM.", "Certificate file")
        why = "A file with the private key of that, in PEM."
        key = file(why, "Key file", lambda path: check_files(ca, certificate, path))
    return sae, KMEAccess(where.rstrip("/"), ca, certificate, key, group)


def _kme_place(answer: str) -> None:
    if answer in (DEVELOPMENT, NONE):
        return
    if not answer.startswith("https://"):
        raise ValueError("write https://host:port, none, or development")
    checked_url(answer)


def ask_integration(asker: Prompter) -> tuple[Integration, str]:
    """How mail reaches the relay, and a smarthost's next hop."""
    why = (
        "How mail comes to the relay. content-filter: Postfix gives it all mail from its queue (recommended). milter: "
        "Postfix asks while it takes mail in. smarthost: this host only sends, and sends straight to the relay."
    )
    integration = asker.choose(why, "Integration", get_args(Integration), "content-filter")
    chosen: Integration = next(each for each in get_args(Integration) if each == integration)
    if chosen != "smarthost":
        return chosen, ""
    where = "The mail server that takes the sealed mail on its way to the peers."
    return chosen, asker.ask(where, "Next hop (host:port)", None, parse_next_hop)


def ask_everybody(asker: Prompter) -> Everybody:
    """What happens to mail for those who are neither inside nor peers."""
    why = (
        "Mail for everybody else, with whom you share no keys. hold: it waits until a policy file says what to do. "
        "refuse: its sender is notified. clear: it leaves IN CLEAR, as it does today."
    )
    answer = asker.choose(why, "Everybody else", get_args(Everybody), "hold")
    chosen: Everybody = next(each for each in get_args(Everybody) if each == answer)
    return chosen


def ask_secret(asker: Prompter, *, tpm2: bool) -> SecretPlace:
    """The place of the site secret, on a machine with credentials: asked only if they protect against theft of the
    disk.
    """
    if not tpm2:
        asker.say(
            "The site secret and the private keys lie on the disk, beside what they protect: who has the disk has all "
            "of it. This machine has no TPM2. `--secret credential` encrypts them, by a key on the same disk."
        )
        return "file"
    why = (
        "The site secret, and a passphrase for the private keys. credential: systemd encrypts them by this machine's "
        "TPM2, so that a thief of the disk alone opens nothing. Keep a copy elsewhere: another machine needs it. file: "
        "the secret lies on the disk beside the store, the private keys without a passphrase."
    )
    answer = asker.choose(why, "Site secret", get_args(SecretPlace), "credential")
    chosen: SecretPlace = next(each for each in get_args(SecretPlace) if each == answer)
    return chosen


def ask_unprotected(asker: Prompter) -> Unprotected:
    """What happens to unsealed mail in a peer's name."""
    why = (
        "Mail in this peer's name that arrives unsealed is forged, or went past its relay. mark: it is delivered with "
        "the field X-QuMail-Protection, and logged. quarantine: it is put aside. refuse: its sender is notified. Begin "
        "with mark: bounces of the peer's mail server, and mailing lists, may come unsealed."
    )
    answer = asker.choose(why, "Unsealed in its name", ("mark", "quarantine", "refuse"), "mark")
    chosen: Unprotected = next(each for each in get_args(Unprotected) if each == answer)
    return chosen


def ask_postfix(asker: Prompter) -> Path | None:
    """The directory of the Postfix beside the relay."""
    if (USUAL_POSTFIX / "main.cf").exists():
        shown = "What would change in it is shown first. `--postfix` names another one, or `none`."
        asker.say(f"The Postfix beside the relay is that of {USUAL_POSTFIX}. {shown}")
        return USUAL_POSTFIX
    why = "The directory of the Postfix beside the relay; what would change in it is shown first. `none`: by hand."
    answer = asker.ask(why, "Postfix", NONE, _postfix_place)
    return None if answer == NONE else Path(answer)


def _postfix_place(answer: str) -> None:
    if answer != NONE and not (Path(answer) / "main.cf").is_file():
        raise ValueError(f"{answer}: no main.cf there")
