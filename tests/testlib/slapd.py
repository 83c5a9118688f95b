"""A real OpenLDAP server on a free port of loopback, with TLS, for people and groups.
Standard: slapd(8), slapd.conf(5); the schemas of Debian's package.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from relay.config import TCPAddress
from tests.testlib.ports import free_addresses

SLAPD = Path("/usr/sbin/slapd")
BASE = "dc=alice,dc=example"
READER, PASSWORD = f"cn=reader,{BASE}", "let me read"

requires_slapd = pytest.mark.skipif(
    not SLAPD.exists() or shutil.which("ldapsearch") is None, reason="slapd and ldapsearch are not installed"
)


@dataclass(frozen=True)
class Slapd:
    """`url` has TLS from the beginning, `starttls` by StartTLS; `ca` is the file of its CA."""

    url: str
    starttls: str
    ca: Path

    def change(self, ldif: str) -> None:
        """By ldapmodify, as the administrator."""
        subprocess.run(
            ["ldapmodify", "-x", "-H", self.url, "-D", f"cn=admin,{BASE}", "-w", "admin"],
            input=ldif.encode(), env={"LDAPTLS_CACERT": str(self.ca), "PATH": "/usr/bin"}, check=True, capture_output=True,
        )  # fmt: skip


@contextmanager
def slapd(directory: Path, entries: str, size_limit: str = "unlimited") -> Iterator[Slapd]:
    """One that runs, with these entries below BASE in LDIF, and an answer of at most `size_limit` entries a page."""
    directory.mkdir()
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    ca, chain, key = directory / "ca.pem", directory / "chain.pem", directory / "key.pem"
    authority.cert_pem.write_to_path(str(ca))
    certificate.cert_chain_pems[0].write_to_path(str(chain))
    certificate.private_key_pem.write_to_path(str(key))
    (directory / "db").mkdir()
    configuration = directory / "slapd.conf"
    schemas = "".join(f"include /etc/ldap/schema/{name}.schema\n" for name in ("core", "cosine", "inetorgperson"))
    configuration.write_text(
        f"{schemas}pidfile {directory}/pid\nmodulepath /usr/lib/ldap\nmoduleload back_mdb\n"
        f"TLSCertificateFile {chain}\nTLSCertificateKeyFile {key}\nTLSCACertificateFile {ca}\n"
        f'database mdb\nsuffix "{BASE}"\nrootdn "cn=admin,{BASE}"\nrootpw admin\ndirectory {directory}/db\n'
        f'limits dn.exact="{READER}" size={size_limit}\n'
        f'access to attrs=userPassword by * auth\naccess to * by dn.exact="{READER}" read by * auth\n'
    )
    first = (
        f"dn: {BASE}\nobjectClass: dcObject\nobjectClass: organization\no: Alice\ndc: alice\n\n"
        f"dn: {READER}\nobjectClass: applicationProcess\nobjectClass: simpleSecurityObject\ncn: reader\n"
        f"userPassword: {PASSWORD}\n\n"
    )
    subprocess.run(
        ["/usr/sbin/slapadd", "-f", str(configuration)],
        input=(first + entries).encode(),
        check=True,
        capture_output=True,
    )
    address, other = free_addresses(2)
    url, starttls = f"ldaps://{address}", f"ldap://{other}"
    with subprocess.Popen(
        [str(SLAPD), "-f", str(configuration), "-h", f"{url} {starttls}", "-d", "0"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            _wait(address, process)
            yield Slapd(url, starttls, ca)
        finally:
            process.kill()


def _wait(address: TCPAddress, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        assert process.poll() is None, "slapd has ended"
        try:
            socket.create_connection(address, timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("slapd does not listen")
