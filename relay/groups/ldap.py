"""Asks a directory by ldapsearch(1) of OpenLDAP, and reads its answer. TLS is always verified.
Standard: RFC 4511, RFC 4513 (TLS), RFC 2849 (LDIF), RFC 2696 (pages).

An answer counts only as a whole: an error, a time limit or a size limit raises.
"""

from __future__ import annotations

import base64
import os
import resource
import shutil
import signal
import ssl
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from relay.config.ldap import LDAPSettings
from relay.errors import ConfigError

PAGE = 500
"""Entries in one answer of the server; Active Directory gives at most 1,000."""
CONNECT_S = 10
SEARCH_S = 300
"""Maximum duration of one search, in seconds."""
MAX_ANSWER = 2**26
"""Maximum size of an answer, in bytes: some 200,000 people."""
NO_SUCH_OBJECT = 32
_PLACES = "/usr/bin:/bin:/usr/local/bin"


class LDAPUnanswered(ConfigError):
    """The directory gave no whole answer."""


@dataclass(frozen=True, slots=True)
class LDAPEntry:
    """One object: its DN, and the values of its attributes by lower-case name."""

    dn: str
    values: dict[str, list[str]] = field(default_factory=dict)

    def of(self, *names: str) -> list[str]:
        """The values of these attributes."""
        return [value for name in names for value in self.values.get(name, ())]


class LDAP:
    """The directory that [ldap] describes."""

    def __init__(self, settings: LDAPSettings) -> None:
        """Raises ConfigError without ldapsearch, or if the password cannot be read."""
        program = shutil.which("ldapsearch", path=_PLACES)
        if program is None:
            raise ConfigError("ldapsearch is not installed: apt install ldap-utils (on RHEL: openldap-clients)")
        # No answer fills the disk: what ldapsearch writes is cut off here, and it ends.
        resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_ANSWER, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        self._settings = settings
        self._program = program
        self._password = b""
        if settings.password is not None:
            try:
                self._password = settings.password.read_bytes().rstrip(b"\r\n")
            except OSError as error:
                raise ConfigError(f"{settings.password}: {error.strerror}") from error

    def search(self, base: str, scope: str, filter_: str, attributes: Sequence[str]) -> list[LDAPEntry]:
        """All that is found; nothing if `base` does not exist. Raises LDAPUnanswered."""
        read, write = os.pipe()
        with os.fdopen(read, "rb") as password, tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as said:
            with os.fdopen(write, "wb") as to_it:
                to_it.write(self._password)  # a pipe holds far more than a password
            asked = self._command(base, scope, password.fileno(), filter_, attributes)
            try:
                done = subprocess.run(  # noqa: S603 - no shell, and the arguments are those of relay.toml
                    asked, stdin=subprocess.DEVNULL, stdout=answer, stderr=said, env=self._environment(), cwd="/",
                    pass_fds=[password.fileno()], timeout=SEARCH_S, check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired as error:
                raise LDAPUnanswered(f"{self._called}: no whole answer within {SEARCH_S} s") from error
            if done.returncode == NO_SUCH_OBJECT:
                return []
            if done.returncode == -signal.SIGXFSZ:
                raise LDAPUnanswered(f"{self._called}: more than {MAX_ANSWER} octets; write a narrower base")
            if done.returncode:
                raise LDAPUnanswered(
                    f"{self._called}: {_last_words(said) or f'ldapsearch ended with {done.returncode}'}"
                )
            answer.seek(0)
            return list(entries(answer))

    @property
    def _called(self) -> str:
        return ", ".join(self._settings.servers)

    def _command(self, base: str, scope: str, password: int, filter_: str, attributes: Sequence[str]) -> list[str]:
        settings = self._settings
        who = ["-D", settings.user, "-y", f"/dev/fd/{password}"] if settings.user is not None else []
        # Without TLS anybody on the way could write the groups.
        in_clear = any(each.startswith("ldap://") for each in settings.servers)
        return [
            self._program, "-x", "-LLL", "-H", " ".join(settings.servers), *(["-ZZ"] if in_clear else []), *who,
            "-o", "ldif-wrap=no", "-o", f"nettimeout={CONNECT_S}", "-E", f"pr={PAGE}/noprompt",
            "-b", base, "-s", scope, filter_, *attributes,
        ]  # fmt: skip

    def _environment(self) -> dict[str, str]:
        """What counts before any ldap.conf; no file of the user counts."""
        ca = self._settings.ca or Path(ssl.get_default_verify_paths().openssl_cafile)
        of_debian = Path("/etc/ssl/certs/ca-certificates.crt")
        if self._settings.ca is None and of_debian.exists():
            ca = of_debian
        return {"PATH": _PLACES, "HOME": "/nonexistent", "LDAPTLS_REQCERT": "demand", "LDAPTLS_CACERT": str(ca)}


def entries(ldif: IO[bytes]) -> Iterator[LDAPEntry]:
    """The entries of an answer in LDIF, whose lines are not wrapped. Raises LDAPUnanswered for anything else."""
    entry: LDAPEntry | None = None
    for number, line in enumerate(ldif, 1):
        text = line.rstrip(b"\r\n")
        if not text:
            if entry is not None:
                yield entry
            entry = None
            continue
        if text.startswith(b"#"):
            continue
        name, colon, value = text.partition(b":")
        try:
            said = base64.b64decode(value[1:].strip(), validate=True) if value.startswith(b":") else value.lstrip(b" ")
            attribute, content = name.decode().lower(), said.decode()
        except ValueError as error:
            if name.lower() == b"dn" or not colon:
                raise LDAPUnanswered(f"line {number} of the answer cannot be read") from error
            continue  # a photograph, a password: nothing that was asked for
        if attribute == "dn" and entry is None:
            entry = LDAPEntry(content)
        elif entry is None or not colon:
            raise LDAPUnanswered(f"line {number} of the answer cannot be read")
        else:
            entry.values.setdefault(attribute, []).append(content)
    if entry is not None:
        yield entry


def _last_words(said: IO[bytes]) -> str:
    said.seek(0)
    text = said.read(2000).decode(errors="replace")
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())
