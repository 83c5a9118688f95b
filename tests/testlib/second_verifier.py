"""A second verifier of the audit record, from deploy/AUDIT.md alone: it shares no code with the relay.
Standard: deploy/AUDIT.md, "The rule" and "Format"; an auditor could write it again in an afternoon.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from datetime import date, timedelta
from functools import cache, reduce
from hashlib import sha256, sha512
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA87PublicKey

_NAME = re.compile(r"(([0-9]{12,})-[0-9-]{10})\.jsonl(\.gz)?")


def fits(directory: Path, kept: Path, signer: str, today: date) -> bool:
    """Whether the record is whole, and fits this checkpoint of this signer."""
    whole = json.loads(kept.read_bytes())
    said = base64.b64decode(whole["checkpoint"], validate=True)
    key = base64.b64decode(whole["key"], validate=True)
    verify(key, base64.b64decode(whole["signature"], validate=True), said)
    try:
        return whole["format"] == 2 and sha256(key).hexdigest() == signer and _fits(directory, json.loads(said), today)
    except (OSError, EOFError, zlib.error):
        return False


@cache  # thousands of edits of a record are tried against one checkpoint
def verify(key: bytes, signature: bytes, said: bytes) -> None:
    """Both halves of a composite signature; raises InvalidSignature."""
    context, label = b"qumail-relay audit checkpoint 2", b"COMPSIG-MLDSA87-ECDSA-P384-SHA512"
    message = b"CompositeAlgorithmSignatures2025" + label + bytes((len(context),)) + context + sha512(said).digest()
    assert key[:-2689].endswith(bytes.fromhex("300a06082b0601050507063103820a8200"))
    lattice, point = key[-2689:-97], key[-97:]
    MLDSA87PublicKey.from_public_bytes(lattice).verify(signature[:4627], message, label)
    curve = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), point)
    curve.verify(signature[4627:], message, ec.ECDSA(hashes.SHA384()))


def _fits(directory: Path, said: dict[str, Any], today: date) -> bool:
    first: dict[str, Any] = {}
    starts, torn, head, number, begun = [(0, "0" * 64)], list[str](), "", 0, False
    found = said["number"] == 0
    for name, lines in _files(directory):
        is_first = True
        for line in lines:
            if len(line) > 2**20:
                return False
            digest, record = sha256(line).hexdigest(), _object(line)
            if record is None:
                torn += [] if first else [digest]
                head = _behind(head, digest)
                continue
            own = record.get("number")
            if type(own) is not int or own < 1 or (first and own != number + 1):
                return False
            number = own
            if first and record.get("previous") != head:
                return False
            begun |= "begun" in record
            if is_first and not name.startswith(f"{number:012}-"):
                return False
            if begun and record.get("begun") != (name[-10:] if is_first else None):
                return False
            if record.get("event") == "removed":
                last = record.get("last")
                if type(last) is not int or not 0 < last < number or not isinstance(record.get("head"), str):
                    return False
                starts.append((last, record["head"]))
            if number == said["number"]:
                found = digest == said["head"]
            first, head, is_first = first or record, digest, False
    if first and (first["number"] - 1, first["previous"]) not in [(n, reduce(_behind, torn, h)) for n, h in starts]:
        return False
    if said["number"] and first and first["number"] > said["first"]:
        days = said.get("days", [[0, said["time"][:10]]])
        day = max((day for from_number, day in days if from_number <= first["number"]), default="9999-12-31")
        found &= "keep_days" in said and date.fromisoformat(day) < today - timedelta(days=said["keep_days"])
    return bool(found)


def _files(directory: Path) -> Iterator[tuple[str, list[bytes]]]:
    files = {
        match[1]: path for path in sorted(directory.iterdir(), reverse=True) if (match := _NAME.fullmatch(path.name))
    }
    for name in sorted(files, key=lambda name: (int(name[:-11]), name)):
        if not files[name].is_file():
            raise OSError(name)
        octets = files[name].read_bytes()
        *lines, rest = (gzip.decompress(octets) if files[name].suffix == ".gz" else octets).split(b"\n")
        yield name, lines + ([rest] if rest else [])


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _behind(head: str, digest: str) -> str:
    return sha256((head + digest).encode()).hexdigest()
