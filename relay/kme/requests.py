"""Strict parsing of requests to a development KME.
Standard: ETSI GS QKD 014 V1.1.1, clauses 6.2 (key request) and 6.4 (key IDs), and RFC 8259 for JSON.

Unknown or repeated parameters, wrong types and wrong content types are refused, so that a client's fault
shows here and not at a customer's KME.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from aiohttp import web

from relay.kme.link import LinkSettings

MAX_BODY_BYTES = 64 * 1024
"""Maximum size of a request body, in octets."""

BODY_TIMEOUT = 10.0
"""Timeout of a request body, in seconds."""

_INTEGER = re.compile(r"[0-9]{1,9}")


class BadRequest(Exception):
    """Answered with 400: `message` for a person, `details` as name/value pairs (clause 6.5)."""

    def __init__(self, message: str, *details: dict[str, Any]) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


@dataclass(frozen=True, slots=True)
class WantedKeys:
    """The parameters of enc_keys (clause 6.2): `number` keys of `size` bits, also for these further slaves."""

    number: int
    size: int
    additional_slaves: tuple[str, ...]


def key_request(asked: Mapping[str, Any], settings: LinkSettings, saes: Collection[str] | None) -> WantedKeys:
    """Parses a Key request (clause 6.2); `saes` are the known SAEs (None: any). Raises BadRequest."""
    _refuse_unknown(asked, "number", "size", "additional_slave_SAE_IDs", "extension_mandatory", "extension_optional")
    _extensions(asked)
    number = _integer("number", asked.get("number", 1))
    _within("number", number, 1, settings.max_key_per_request, "max_key_per_request")
    size = _integer("size", asked.get("size", settings.key_size))
    if size % 8:
        raise BadRequest("size shall be a multiple of 8", {"size": size})
    _within("size", size, settings.min_key_size, settings.max_key_size, "min_key_size and max_key_size")
    slaves = asked.get("additional_slave_SAE_IDs", [])
    if not isinstance(slaves, list) or not all(isinstance(sae, str) for sae in slaves):
        raise BadRequest("additional_slave_SAE_IDs shall be an array of strings")
    _within("number of additional_slave_SAE_IDs", len(slaves), 0, settings.max_sae_id_count, "max_SAE_ID_count")
    if unknown := [sae for sae in slaves if saes is not None and sae not in saes]:
        raise BadRequest(
            "one or more additional_slave_SAE_IDs are not known",
            *({"additional_slave_SAE_ID": sae} for sae in unknown),
        )
    return WantedKeys(number, size, tuple(slaves))


def key_ids(asked: Mapping[str, Any], settings: LinkSettings, *, numbers: bool = False) -> list[str]:
    """The IDs of a Key IDs object (clause 6.4), in their order, with `numbers` also integers; raises BadRequest."""
    _refuse_unknown(asked, "key_IDs", "key_IDs_extension")
    _optional_object(asked, "key_IDs_extension")
    entries = _objects("key_IDs", asked.get("key_IDs"))
    _within("number of key_IDs", len(entries), 1, settings.max_key_per_request, "max_key_per_request")
    for entry in entries:
        _refuse_unknown(entry, "key_ID", "key_ID_extension")
        _optional_object(entry, "key_ID_extension")
    ids = [entry.get("key_ID") for entry in entries]
    if numbers:
        ids = [str(key_id) if isinstance(key_id, int) else key_id for key_id in ids]
    if not all(isinstance(key_id, str) and key_id for key_id in ids):
        raise BadRequest("key_ID shall be a string of at least one character")
    if len(set(ids)) < len(ids):
        raise BadRequest("key_IDs shall not name a key twice")
    return [str(key_id) for key_id in ids]


def _extensions(asked: Mapping[str, Any]) -> None:
    """Checks extensions: optional ones are ignored (clause 6.2); no mandatory ones are supported."""
    _objects("extension_optional", asked.get("extension_optional", []))
    mandatory = _objects("extension_mandatory", asked.get("extension_mandatory", []))
    if mandatory:
        names = [name for extension in mandatory for name in extension]
        raise BadRequest(
            "not all extension_mandatory parameters are supported",
            *({"extension_mandatory_unsupported": f"{name} is not supported"} for name in names),
        )


def _integer(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadRequest(f"{name} shall be an integer", {"parameter": name})
    return value


def integer_from_text(name: str, text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise BadRequest(f"{name} shall be an integer", {"parameter": name})
    return int(text)


def _within(name: str, value: int, least: int, most: int, limit: str) -> None:
    if not least <= value <= most:
        raise BadRequest(f"{name} shall be from {least} to {most} ({limit})", {name: value})


def _objects(name: str, value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise BadRequest(f"{name} shall be an array of objects", {"parameter": name})
    return value


def _optional_object(asked: Mapping[str, Any], name: str) -> None:
    if not isinstance(asked.get(name, {}), dict):
        raise BadRequest(f"{name} shall be an object", {"parameter": name})


def _refuse_unknown(asked: Mapping[str, Any], *known: str) -> None:
    if unknown := sorted(set(asked) - set(known)):
        raise BadRequest(
            f"unknown parameters; known here: {', '.join(known) or 'none'}",
            *({"parameter": name} for name in unknown),
        )


def query(request: web.Request, *known: str) -> dict[str, str]:
    """The parameters of the URL, each at most once and only `known` ones."""
    asked = dict(request.query)
    _refuse_unknown(asked, *known)
    if len(request.query) > len(asked):
        raise BadRequest("a parameter is given more than once")
    return asked


async def body(request: web.Request) -> dict[str, Any]:
    """The JSON object that was posted; raises BadRequest for everything else."""
    query(request)
    if request.content_type != "application/json":
        raise BadRequest("Content-Type shall be application/json", {"Content-Type": request.content_type})
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            raw = await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise BadRequest(f"request body shall be at most {MAX_BODY_BYTES} octets") from error
    except (web.RequestPayloadError, ConnectionError, TimeoutError) as error:
        raise BadRequest("request body did not come as its header announced") from error
    try:
        body = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique_members, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadRequest("request body shall be JSON", {"reason": str(error)}) from error
    if not isinstance(body, dict):
        raise BadRequest("request body shall be a JSON object")
    return body


def _unique_members(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError for duplicate members, on which readers disagree (RFC 8259, 4)."""
    unique = dict(members)
    if len(unique) < len(members):
        raise ValueError("an object names a member twice")
    return unique


def _refuse_constant(name: str) -> NoReturn:
    """Refuses NaN and Infinity, which Python accepts and JSON does not have."""
    raise ValueError(f"{name} is not JSON")
