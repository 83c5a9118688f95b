"""Further KEMs (HQC, FrodoKEM, Classic McEliece) by liboqs, an optional library that is loaded when first needed.
By liboqs 0.16 through liboqs-python; it never downloads or builds anything.

`import oqs` without the native library would clone, build and install it. So the library is searched first, in the
places where `oqs` searches, and network access is blocked during the import.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes.util import find_library
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from relay.errors import BadTag, KEMUnavailable
from relay.formats.cms import KEMS

SECRET_OCTETS = 32

_IMPORTING = threading.Lock()

INSTALL = (
    "install the Python package (pip install liboqs-python) and the native library liboqs (a package of "
    "your system, or built from https://github.com/open-quantum-safe/liboqs as a shared library; where the loader does "
    "not find it, OQS_INSTALL_PATH names the directory whose lib/liboqs.so it is), then start again"
)
"""Installation instructions."""

_ALGORITHMS = {
    "hqc-256": ("HQC-5", "HQC-256"),
    "frodokem-1344-shake": ("FrodoKEM-1344-SHAKE",),
    "classic-mceliece-6688128": ("Classic-McEliece-6688128",),
}
"""The names of each KEM in releases of liboqs; the one with our format's sizes is used."""


@dataclass(frozen=True, slots=True)
class KEMKeys:
    """A fresh key pair in liboqs' form."""

    public_key: bytes = field(repr=False)
    private_key: bytes = field(repr=False)


def missing() -> str:
    """What is missing on this machine, and how to install it; "" if further KEMs are available."""
    library = _load()
    return library if isinstance(library, str) else ""


def unavailable(name: str) -> str:
    """Why the KEM of this name is unavailable here, and the remedy, or ""."""
    try:
        _find(name)
    except KEMUnavailable as error:
        return str(error)
    return ""


def generate(name: str) -> KEMKeys:
    """A fresh key pair. Raises KEMUnavailable."""
    with _kem(name) as kem:
        public_key: bytes = kem.generate_keypair()
        return KEMKeys(public_key, kem.export_secret_key())


def encapsulate(name: str, public_key: bytes) -> tuple[bytes, bytes]:
    """A fresh shared secret of 32 octets, and the ciphertext from which the private key recovers it.

    Raises KEMUnavailable, also for an invalid public key.
    """
    with _kem(name) as kem:
        if len(public_key) != KEMS[name].public_key_octets:
            raise KEMUnavailable(f"{name}: a public key of {len(public_key)} octets is not one")
        try:
            ciphertext, secret = kem.encap_secret(public_key)
        except RuntimeError as error:
            raise KEMUnavailable(f"{name}: liboqs does not take the public key") from error
        return secret, ciphertext


def decapsulate(name: str, private_key: bytes, ciphertext: bytes) -> bytes:
    """The shared secret; a wrong one, or BadTag, if the ciphertext is for another key. Raises KEMUnavailable."""
    with _kem(name, private_key) as kem:
        if len(ciphertext) != KEMS[name].ciphertext_octets:
            raise BadTag(f"{name}: a ciphertext of {len(ciphertext)} octets is not one")
        try:
            secret: bytes = kem.decap_secret(ciphertext)
        except RuntimeError as error:
            raise BadTag(f"{name}: the ciphertext is not for our key") from error
        return secret


@contextmanager
def _kem(name: str, private_key: bytes | None = None) -> Iterator[Any]:
    """The library's object for one use; its secrets are wiped afterwards."""
    oqs, algorithm = _find(name)
    if private_key is not None and len(private_key) != _details(oqs, algorithm)["length_secret_key"]:
        raise KEMUnavailable(f"{name}: the private key was made by another release of liboqs; make a new one")
    with oqs.KeyEncapsulation(algorithm, private_key) as kem:
        yield kem


def _find(name: str) -> tuple[ModuleType, str]:
    """The library, and its name of the KEM with our format's sizes. Raises KEMUnavailable."""
    if name not in _ALGORITHMS:
        raise KEMUnavailable(f"{name!r} is not a KEM that liboqs is used for")
    oqs = _load()
    if isinstance(oqs, str):
        raise KEMUnavailable(f"{name}: {oqs}")
    sizes = (KEMS[name].public_key_octets, KEMS[name].ciphertext_octets, SECRET_OCTETS)
    for algorithm in _ALGORITHMS[name]:
        if algorithm in oqs.get_enabled_kem_mechanisms():
            details = _details(oqs, algorithm)
            if (details["length_public_key"], details["length_ciphertext"], details["length_shared_secret"]) == sizes:
                return oqs, algorithm
    raise KEMUnavailable(
        f"{name}: the liboqs on this machine ({oqs.oqs_version()}) does not have it as our format wants it; "
        "install release 0.16 or later, built with it"
    )


def _details(oqs: ModuleType, algorithm: str) -> dict[str, Any]:
    with oqs.KeyEncapsulation(algorithm) as kem:
        details: dict[str, Any] = kem.details
        return details


@functools.cache
def _load() -> ModuleType | str:
    """The module `oqs`, or why there is none; cached for the process."""
    if "oqs" not in sys.modules and importlib.util.find_spec("oqs") is None:
        return f"the Python package liboqs-python is missing: {INSTALL}"
    if fault := _no_native_library():
        return f"{fault}: {INSTALL}"
    # Its logger would write to standard output, where `seal` and `open` put messages.
    logging.getLogger("oqs.oqs").disabled = True
    with _IMPORTING, _network_barred(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module("oqs")
        except (Exception, SystemExit) as error:  # noqa: BLE001  # further KEMs are unavailable
            return f"liboqs-python does not load ({type(error).__name__}: {error}): {INSTALL}"


def _no_native_library() -> str:
    """Why the native library cannot be loaded, or ""."""
    directories = _directories()
    places = [find_library("oqs"), *(str(directory / "liboqs.so") for directory in directories)]
    faults = []
    for place in places:
        if place is None or ("/" in place and not Path(place).exists()):
            continue
        try:
            ctypes.CDLL(place)
        except OSError as error:
            faults.append(str(error))
        else:
            return ""
    if faults:
        return f"the native library liboqs cannot be loaded ({faults[0]})"
    looked = ", ".join(map(str, directories))
    return f"the native library liboqs is missing (looked for by the system's loader and in {looked})"


def _directories() -> list[Path]:
    """Directories in which `oqs` looks beside the loader's own paths."""
    prefix = os.environ.get("OQS_INSTALL_PATH")
    root = Path(prefix) if prefix is not None else Path("~/_oqs").expanduser()
    return [root / "lib", root / "lib64"]


@contextmanager
def _network_barred() -> Iterator[None]:
    """Prevents `oqs` from downloading anything, by leaving it no version to install."""
    before = os.environ.get("PYOQS_VERSION")
    os.environ["PYOQS_VERSION"] = "disabled"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYOQS_VERSION"]
        else:
            os.environ["PYOQS_VERSION"] = before
