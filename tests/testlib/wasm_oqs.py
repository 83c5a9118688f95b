"""What the tests use of the module `oqs`, over liboqs as WebAssembly under nodejs: a second implementation.
Its release is 0.15, whose HQC is an older revision than the format's; FrodoKEM and Classic McEliece are the same.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

NODE = Path(__file__).parent.parent / "node"
ALGORITHMS = ("ML-KEM-1024", "HQC-256", "FrodoKEM-1344-SHAKE", "Classic-McEliece-6688128")


def missing() -> str:
    """What is missing for it on this machine, or ""."""
    if shutil.which("node") is None:
        return "nodejs is not installed (deploy/test does it as root)"
    if not (NODE / "node_modules/@oqs/liboqs-js").is_dir():
        return "@oqs/liboqs-js is not installed (deploy/test does it: npm ci in tests/node)"
    return ""


class Node:
    """One nodejs process; asked by one thread at a time."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._process = subprocess.Popen(
            ["node", "oqs.mjs"], cwd=NODE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, algorithm: str, method: str, *parameters: bytes) -> Any:
        """What the method returns, octets in base64. Raises RuntimeError where it fails, as `oqs` does."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        encoded = [base64.b64encode(each).decode() for each in parameters]
        with self._turn:
            print(json.dumps({"algorithm": algorithm, "method": method, "parameters": encoded}),
                  file=self._process.stdin, flush=True)  # fmt: skip
            reply = json.loads(self._process.stdout.readline())
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply["value"]

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


class _Scheme:
    node: Node

    def __init__(self, algorithm: str, secret_key: bytes | None = None) -> None:
        self._algorithm, self._secret_key = algorithm, secret_key

    def __enter__(self) -> _Scheme:
        return self

    def __exit__(self, *_: object) -> None:
        self._secret_key = None

    def _ask(self, method: str, *parameters: bytes) -> Any:
        return self.node.ask(self._algorithm, method, *parameters)

    def generate_keypair(self) -> bytes:
        pair = self._ask("generateKeyPair")
        self._secret_key = base64.b64decode(pair["secretKey"])
        return base64.b64decode(pair["publicKey"])

    def export_secret_key(self) -> bytes:
        assert self._secret_key is not None
        return self._secret_key


class _KeyEncapsulation(_Scheme):
    @property
    def details(self) -> dict[str, int]:
        sizes = self._ask("info")["keySize"]
        return {
            "length_public_key": sizes["publicKey"],
            "length_secret_key": sizes["secretKey"],
            "length_ciphertext": sizes["ciphertext"],
            "length_shared_secret": sizes["sharedSecret"],
        }

    def encap_secret(self, public_key: bytes) -> tuple[bytes, bytes]:
        both = self._ask("encapsulate", public_key)
        return base64.b64decode(both["ciphertext"]), base64.b64decode(both["sharedSecret"])

    def decap_secret(self, ciphertext: bytes) -> bytes:
        return base64.b64decode(self._ask("decapsulate", ciphertext, self.export_secret_key()))


class _Signature(_Scheme):
    def sign(self, message: bytes) -> bytes:
        return base64.b64decode(self._ask("sign", message, self.export_secret_key()))

    def verify(self, message: bytes, signature: bytes, public_key: bytes) -> bool:
        return bool(self._ask("verify", message, signature, public_key))


def wasm_oqs(node: Node) -> Any:
    """The module, which lives as long as the process that does its work."""
    module: Any = ModuleType("oqs")
    module.KeyEncapsulation = type("KeyEncapsulation", (_KeyEncapsulation,), {"node": node})
    module.Signature = type("Signature", (_Signature,), {"node": node})
    module.get_enabled_kem_mechanisms = lambda: ALGORITHMS
    module.oqs_version = lambda: "0.15.1"
    return module
