"""Carries the answers out: directories, relay.toml, policies, the KME's files, secret and identity.
Each step keeps what exists, so that the next run completes an interrupted one, and a complete site is not changed.
"""

from __future__ import annotations

from pathlib import Path

from relay.config import Config
from relay.errors import ConfigError
from relay.files import toml
from relay.files.credentials import credential_name, is_there
from relay.files.rights import open_named
from relay.formats.mailbox import fold_domain
from relay.identity import Progress, create_identity, needs_nothing
from relay.setup.answers import Answers, KMEAccess, SitePaths
from relay.setup.files import Owner, Written, make_directory, put
from relay.setup.keeping import with_what_was_added
from relay.setup.policies import policy_file, write_first_policies
from relay.setup.relay_toml import kme_files, relay_toml
from relay.store.secret import SiteSecret

MAX_PEM = 65_536
"""Maximum size of a copied certificate or key file, in bytes."""


def write_configuration(answers: Answers, places: SitePaths, owner: Owner, *, replace: bool = False) -> list[Written]:
    """Writes all configuration. Raises ConfigError; if a KME's file is missing, before anything is written."""
    for domain in answers.domains:
        policy_file(domain)
    text = relay_toml(answers, places)
    if replace and places.config_file.exists():
        text = with_what_was_added(places.config_file, text, toml.read(places.config_file))
    pem = _pem_files(answers.kme, places.directory) if answers.kme else []
    written = [make_directory(path, owner) for path in (places.directory, places.directory / "policies")]
    if pem:
        written.append(make_directory(places.directory / "kme", owner))
    written += [put(path, content, owner, replace=replace) for path, content in pem]
    written += write_first_policies(places.directory / "policies", answers, owner)
    # Last: an existing relay.toml tells the next run that the questions are answered.
    written.append(put(places.config_file, text.encode(), owner, replace=replace))
    return written


def make_state(config: Config, progress: Progress) -> list[Written]:
    """Makes secret and identity by relay.toml, owned by the current user, who is the relay's. Raises ConfigError."""
    secret, files, me = config.store.secret, config.identity, Owner.myself()
    directories = dict.fromkeys((config.own_directory, config.state_directory))
    if isinstance(config.store.database, Path):
        directories[config.store.database.parent] = None
    if not credential_name(secret):
        directories[secret.parent] = None
    written = [make_directory(each, me, state=True) for each in directories]
    written.append(Written(secret, "there already" if is_there(secret) else "made"))
    SiteSecret.load_or_create(secret)
    if files is None:
        return written
    written += [make_directory(each, me, state=True) for each in (files.directory, files.peers_directory)]
    if needs_nothing(files.directory):
        return [*written, Written(files.directory / "ca.pem", "there already")]
    create_identity(
        files.directory,
        name=config.site.name,
        domains=[fold_domain(domain) for domain in config.site.domains],
        passphrase=files.passphrase,
        progress=progress,
    )
    return [*written, Written(files.directory / "ca.pem", "made")]


def _pem_files(kme: KMEAccess, directory: Path) -> list[tuple[Path, bytes]]:
    """The files to copy: destination and content. Raises ConfigError if one is unreadable."""
    sources = (kme.ca, kme.certificate, kme.key)
    return [(path, _read(source)) for path, source in zip(kme_files(directory), sources, strict=True)]


def _read(path: Path) -> bytes:
    try:
        with open_named(path) as file:
            content = file.read(MAX_PEM + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > MAX_PEM or b"-----BEGIN " not in content:
        raise ConfigError(f"{path}: not a file in PEM")
    return content
