"""Bouncy Castle as a second implementation of every structure: seals, opens, signs, verifies, parses.
Standard: Debian's libbcpkix-java and a JDK; tests/java/Interop.java is compiled and started once a test session.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import subprocess
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA87PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

SOURCE = Path(__file__).parents[1] / "java" / "Interop.java"
JARS = tuple(Path("/usr/share/java") / f"{name}.jar" for name in ("bcpkix", "bcutil", "bcprov"))
DEADLINE_S = 180  # javac beside a loaded machine's tests, at the lowest priority
_REFUSED = 3

SigningKey = MLDSA87PrivateKey | RSAPrivateKey | EllipticCurvePrivateKey
Argument = str | bytes | SigningKey | x509.Certificate


class Refused(Exception):
    """Bouncy Castle does not accept the message; says why."""


def _missing() -> str:
    """What has to be installed, or ""."""
    packages = [] if shutil.which("javac") and shutil.which("java") else ["openjdk-21-jdk-headless"]
    if not all(jar.exists() for jar in JARS):
        packages.append("libbcpkix-java")
    return " ".join(packages)


requires_bouncycastle = pytest.mark.skipif(
    bool(_missing()), reason=f"Bouncy Castle is not installed: apt-get install {_missing()}"
)


def parse(message: bytes) -> dict[str, Any]:
    """What Bouncy Castle's own ASN.1 classes find in one ContentInfo: types, recipients, signers, algorithms."""
    found: dict[str, Any] = json.loads(_run("parse", message))
    return found


def to_der(message: bytes) -> bytes:
    """One ContentInfo of AuthEnvelopedData or SignedData, re-encoded as DER."""
    return _run("to-der", message, Path("out"))


def open_kek(message: bytes, key: bytes) -> bytes:
    """The content of AuthEnvelopedData for a holder of `key`. Raises Refused."""
    return _run("open-kek", message, Path("out"), key.hex())


def open_rsa(message: bytes, key: RSAPrivateKey) -> bytes:
    """The content of AuthEnvelopedData for an RSA key. Raises Refused."""
    return _run("open-rsa", message, Path("out"), key)


def seal_kek(payload: bytes, key: bytes, key_id: str, *, ber: bool = False) -> bytes:
    """AuthEnvelopedData (AES-256-GCM, 16 octets of tag), its content key wrapped under `key`; DER, or streamed BER."""
    return _run("seal-kek", Path("out"), payload, _form(ber), key.hex(), key_id)


def seal_rsa(payload: bytes, certificate: x509.Certificate, *, ber: bool = False) -> bytes:
    """The same by RSAES-OAEP with SHA-256."""
    return _run("seal-rsa", Path("out"), payload, _form(ber), certificate)


def envelop(payload: bytes, certificate: x509.Certificate, *, ber: bool = False) -> bytes:
    """EnvelopedData (AES-256-CBC), by RSAES-PKCS1-v1_5 or ECDH."""
    return _run("envelop", Path("out"), payload, _form(ber), certificate)


def sign(payload: bytes, key: SigningKey, certificate: x509.Certificate, *, ber: bool = False) -> bytes:
    """SignedData around `payload`: ML-DSA-87 with SHA-512, or RSASSA-PSS or ECDSA with SHA-256."""
    return _run("sign", Path("out"), payload, _form(ber), key, certificate)


def verify(message: bytes, certificate: x509.Certificate) -> bytes:
    """The content of SignedData whose signers are all `certificate`. Raises Refused."""
    return _run("verify", message, Path("out"), certificate)


def _form(ber: bool) -> str:
    return "ber" if ber else "der"


def _run(command: str, *arguments: Argument | Path) -> bytes:
    """One subcommand of Interop.java; arguments that are not text become files, and a Path says where output goes."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        words = [_word(argument, directory, number) for number, argument in enumerate(arguments)]
        status, printed = _program().run(command, *words)
        if status == _REFUSED:
            raise Refused(printed.decode())
        if status:
            raise RuntimeError(f"Interop.java {command}: {printed.decode()}")
        output = directory / "out"
        return output.read_bytes() if output.exists() else printed


class _Program:
    """Interop.java in one process for all calls, which share nothing in it: each reads its files and writes its own."""

    def __init__(self) -> None:
        # Serial collection and one tier of compilation: it has a hundred calls or fewer to answer.
        self._process = subprocess.Popen(
            ["java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-cp", _class_path(), "Interop"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *words: str) -> tuple[int, bytes]:
        """The status of one subcommand, and what it prints."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert not any(set("\t\r\n") & set(word) for word in words)
        deadline = threading.Timer(DEADLINE_S, self._process.kill)
        deadline.start()
        try:
            self._process.stdin.write("\t".join(words).encode() + b"\n")
            self._process.stdin.flush()
            status, octets = (int(number) for number in self._process.stdout.readline().split())
            printed = self._process.stdout.read(octets)
        except (OSError, ValueError) as error:
            self.end()
            raise RuntimeError(f"Interop.java {words[0]}: no answer, or none within {DEADLINE_S} s") from error
        finally:
            deadline.cancel()
        if len(printed) < octets:
            self.end()
            raise RuntimeError(f"Interop.java {words[0]}: an answer of {octets} octets broke off")
        return status, printed

    def end(self) -> None:
        """The process is gone, and the next call starts another."""
        _program.cache_clear()
        self._process.kill()
        with suppress(OSError):
            self._process.communicate()


@functools.cache
def _program() -> _Program:
    program = _Program()
    atexit.register(program.end)
    return program


def _word(argument: Argument | Path, directory: Path, number: int) -> str:
    if isinstance(argument, str):
        return argument
    path = directory / (argument if isinstance(argument, Path) else str(number))
    match argument:
        case bytes():
            path.write_bytes(argument)
        case x509.Certificate():
            path.write_bytes(argument.public_bytes(Encoding.PEM))
        case MLDSA87PrivateKey() | RSAPrivateKey() | EllipticCurvePrivateKey():
            path.write_bytes(argument.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return str(path)


@functools.cache
def _class_path() -> str:
    """Compiles the program, once; the classes are gone with the test session."""
    directory = tempfile.mkdtemp(prefix="interop-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    jars = ":".join(str(jar) for jar in JARS)
    cheap = ["-J-XX:+UseSerialGC", "-J-XX:TieredStopAtLevel=1"]
    command = ["javac", *cheap, "-Xlint:all,-path", "-Werror", "-cp", jars, "-d", directory, str(SOURCE)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=DEADLINE_S)
    if done.returncode:
        raise RuntimeError(f"{SOURCE} does not compile: {done.stderr.decode()}")
    return f"{directory}:{jars}"
