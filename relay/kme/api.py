"""The key delivery API of one development KME: who asks, what is asked, what is answered.
Standard: ETSI GS QKD 014 V1.1.1, clauses 5 (the three methods) and 6 (status, requests, keys, errors).

Read strictly: unknown or repeated parameters, wrong types and wrong content types are answered with 400, so
that a client's fault shows here and not at a customer's KME. Every error has the body of clause 6.5, except
401, which has none.
"""

from __future__ import annotations

import asyncio
import json
import re
import traceback
from base64 import b64encode
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NoReturn

import structlog
from aiohttp import web

from relay.keys.development import KME_IDS
from relay.keys.types import Key
from relay.kme.certificates import SAES, common_name_of_sae
from relay.kme.link import (
    NOT_QUANTUM,
    KeysNotFound,
    LinkSettings,
    NotNamedAsSlave,
    PoolTooLow,
    SimulatedLink,
)

MAX_BODY_BYTES = 64 * 1024
"""A request body above this size (octets) is refused."""

BODY_TIMEOUT = 10.0
"""A request body that has not come within this time (seconds) is refused."""

_INTEGER = re.compile(r"[0-9]{1,9}")
_SAES_BY_COMMON_NAME = {common_name_of_sae(sae): sae for sae in SAES}

log = structlog.get_logger(__name__)


class BadRequest(Exception):
    """Answered with 400: `message` for a person, `details` as name/value pairs (clause 6.5)."""

    def __init__(self, message: str, *details: dict[str, Any]) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """What enc_keys is asked for (clause 6.2): `number` keys of `size` bits, for these further slaves too."""

    number: int
    size: int
    additional_slaves: tuple[str, ...]


class KeyDelivery:
    """The three calls of one KME (`kme` is "KM1" or "KM2") at its end of `link`."""

    def __init__(self, kme: str, link: SimulatedLink) -> None:
        self._kme = kme
        self._other_kme = KME_IDS[1 - KME_IDS.index(kme)]
        self._link = link

    def application(self) -> web.Application:
        """The routes, for aiohttp to serve. HEAD is not among them: it would use keys up and show none."""
        app = web.Application(middlewares=[_errors_have_their_body], client_max_size=MAX_BODY_BYTES)
        keys = "/api/v1/keys"
        app.add_routes(
            [
                web.get(keys + "/{slave}/status", self._status, allow_head=False),
                web.get(keys + "/{slave}/enc_keys", self._enc_keys, allow_head=False),
                web.post(keys + "/{slave}/enc_keys", self._enc_keys),
                web.get(keys + "/{master}/dec_keys", self._dec_keys, allow_head=False),
                web.post(keys + "/{master}/dec_keys", self._dec_keys),
            ]
        )
        return app

    async def _status(self, request: web.Request) -> web.Response:
        """Get status: the answer is clause 6.1."""
        master, slave = self._caller(request), self._slave(request)
        _query(request)
        settings = self._link.settings
        return _json(
            {
                "source_KME_ID": self._kme,
                "target_KME_ID": self._other_kme,
                "master_SAE_ID": master,
                "slave_SAE_ID": slave,
                "key_size": settings.key_size,
                "stored_key_count": self._link.stored_key_count,
                "max_key_count": settings.stored_key_limit,
                "max_key_per_request": settings.max_key_per_request,
                "max_key_size": settings.max_key_size,
                "min_key_size": settings.min_key_size,
                "max_SAE_ID_count": settings.max_sae_id_count,
                "status_extension": {"quantum": False, "note": NOT_QUANTUM},
            }
        )

    async def _enc_keys(self, request: web.Request) -> web.Response:
        """Get key: the question is clause 6.2, the answer 6.3."""
        master, slave = self._caller(request), self._slave(request)
        if request.method == "GET":
            asked: dict[str, Any] = {
                name: _integer_from_text(name, text) for name, text in _query(request, "number", "size").items()
            }
        else:
            asked = await _body(request)
        wanted = key_request(asked, self._link.settings)
        keys = self._link.issue(
            kme=self._kme,
            master=master,
            slaves={slave, *wanted.additional_slaves},
            number=wanted.number,
            size=wanted.size,
        )
        return _key_container(keys)

    async def _dec_keys(self, request: web.Request) -> web.Response:
        """Get key with key IDs: the question is clause 6.4, the answer 6.3."""
        slave, master = self._caller(request), self._master(request)
        if request.method == "GET":
            asked: dict[str, Any] = {"key_IDs": [_query(request, "key_ID")]}
        else:
            asked = await _body(request)
        wanted = key_ids(asked, self._link.settings)
        try:
            return _key_container(self._link.deliver(wanted, master=master, slave=slave))
        except NotNamedAsSlave:
            self._unauthorized("not named as a slave of the key", sae=slave)

    def _caller(self, request: web.Request) -> str:
        """The SAE whose certificate the client presented; 401 where it is not one of this KME's."""
        certificate: dict[str, Any] = request.get_extra_info("peercert") or {}
        subject = [pair for names in certificate.get("subject", ()) for pair in names]
        names = [value for name, value in subject if name == "commonName"]
        sae = _SAES_BY_COMMON_NAME.get(names[0]) if len(names) == 1 else None
        if sae is None:
            self._unauthorized("certificate of no known SAE", common_names=names)
        if SAES[sae] != self._kme:
            self._unauthorized(f"this SAE is attached to {SAES[sae]}", sae=sae)
        return sae

    def _slave(self, request: web.Request) -> str:
        """The SAE named in the path; 401 where the other end of the link has none of that name."""
        sae = request.match_info["slave"]
        if SAES.get(sae) != self._other_kme:
            self._unauthorized(f"slave in the path is not an SAE of {self._other_kme}", slave=sae[:64])
        return sae

    def _master(self, request: web.Request) -> str:
        """The SAE named in the path; 401 where there is none of that name.

        It may be the caller itself, which can name itself as an additional slave.
        """
        sae = request.match_info["master"]
        if sae not in SAES:
            self._unauthorized("master in the path is no known SAE", master=sae[:64])
        return sae

    def _unauthorized(self, why: str, **context: Any) -> NoReturn:
        log.warning("kme_unauthorized", kme=self._kme, why=why, **context)
        raise _Unauthorized


class _Unauthorized(Exception):
    """Answered with 401 and no body."""


def key_request(asked: dict[str, Any], settings: LinkSettings) -> KeyRequest:
    """Check a Key request (clause 6.2) against the settings; raises BadRequest."""
    _refuse_unknown(asked, "number", "size", "additional_slave_SAE_IDs", "extension_mandatory", "extension_optional")
    _extensions(asked)
    return KeyRequest(
        number=_number(asked.get("number", 1), settings),
        size=_size(asked.get("size", settings.key_size), settings),
        additional_slaves=_additional_slaves(asked.get("additional_slave_SAE_IDs", []), settings),
    )


def key_ids(asked: dict[str, Any], settings: LinkSettings) -> list[str]:
    """The IDs of a Key IDs object (clause 6.4), in their order; raises BadRequest."""
    _refuse_unknown(asked, "key_IDs", "key_IDs_extension")
    _optional_object(asked, "key_IDs_extension")
    entries = _objects("key_IDs", asked.get("key_IDs"))
    _within("number of key_IDs", len(entries), 1, settings.max_key_per_request, "max_key_per_request")
    for entry in entries:
        _refuse_unknown(entry, "key_ID", "key_ID_extension")
        _optional_object(entry, "key_ID_extension")
    ids = [entry.get("key_ID") for entry in entries]
    if not all(isinstance(key_id, str) and key_id for key_id in ids):
        raise BadRequest("key_ID shall be a string of at least one character")
    if len(set(ids)) < len(ids):
        raise BadRequest("key_IDs shall not name a key twice")
    return [str(key_id) for key_id in ids]


def _number(value: object, settings: LinkSettings) -> int:
    number = _integer("number", value)
    _within("number", number, 1, settings.max_key_per_request, "max_key_per_request")
    return number


def _size(value: object, settings: LinkSettings) -> int:
    size = _integer("size", value)
    if size % 8:
        raise BadRequest("size shall be a multiple of 8", {"size": size})
    _within("size", size, settings.min_key_size, settings.max_key_size, "min_key_size and max_key_size")
    return size


def _additional_slaves(value: object, settings: LinkSettings) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(sae, str) for sae in value):
        raise BadRequest("additional_slave_SAE_IDs shall be an array of strings")
    _within("number of additional_slave_SAE_IDs", len(value), 0, settings.max_sae_id_count, "max_SAE_ID_count")
    if unknown := [sae for sae in value if sae not in SAES]:
        raise BadRequest(
            "one or more additional_slave_SAE_IDs are not known",
            *({"additional_slave_SAE_ID": sae} for sae in unknown),
        )
    return tuple(value)


def _extensions(asked: dict[str, Any]) -> None:
    """Optional ones are ignored, as clause 6.2 allows; there are no mandatory ones that we know."""
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


def _integer_from_text(name: str, text: str) -> int:
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


def _optional_object(asked: dict[str, Any], name: str) -> None:
    if not isinstance(asked.get(name, {}), dict):
        raise BadRequest(f"{name} shall be an object", {"parameter": name})


def _refuse_unknown(asked: dict[str, Any], *known: str) -> None:
    if unknown := sorted(set(asked) - set(known)):
        raise BadRequest(
            f"unknown parameters; known here: {', '.join(known) or 'none'}",
            *({"parameter": name} for name in unknown),
        )


def _query(request: web.Request, *known: str) -> dict[str, str]:
    """The parameters of the URL, each at most once and none but `known`."""
    asked = dict(request.query)
    _refuse_unknown(asked, *known)
    if len(request.query) > len(asked):
        raise BadRequest("a parameter is given more than once")
    return asked


async def _body(request: web.Request) -> dict[str, Any]:
    """The JSON object that was posted; raises BadRequest for everything else."""
    _query(request)
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
    """JSON lets an object name a member twice, and readers then disagree on which counts (RFC 8259, 4)."""
    unique = dict(members)
    if len(unique) < len(members):
        raise ValueError("an object names a member twice")
    return unique


def _refuse_constant(name: str) -> NoReturn:
    """NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(f"{name} is not JSON")


def _key_container(keys: list[Key]) -> web.Response:
    """Clause 6.3 Key container."""
    container = [{"key_ID": key.key_ID, "key": b64encode(key.key).decode("ascii")} for key in keys]
    return _json({"keys": container})


def _json(content: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> web.Response:
    return web.json_response(content, status=status, headers={"Cache-Control": "no-store"})


def _error(status: int, message: str, *details: dict[str, Any]) -> web.Response:
    """Clause 6.5 Error; `details` are left out where there are none."""
    body: dict[str, Any] = {"message": message}
    if details:
        body["details"] = list(details)
    return _json(body, HTTPStatus(status))


@web.middleware
async def _errors_have_their_body(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Give every failure the status and body of the standard; a fault of ours is 503, without its text."""
    try:
        return await handler(request)
    except _Unauthorized:
        return web.Response(status=HTTPStatus.UNAUTHORIZED)
    except BadRequest as error:
        return _error(HTTPStatus.BAD_REQUEST, error.message, *error.details)
    except KeysNotFound as error:
        missing = ({"key_ID": key_id} for key_id in error.key_ids)
        return _error(HTTPStatus.BAD_REQUEST, "one or more keys specified are not found on KME", *missing)
    except PoolTooLow as error:
        return _error(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "key pool too low for this request",
            {"stored_key_count": error.stored},
        )
    except web.HTTPException as error:  # no such path, no such method
        answer = _error(error.status, error.reason, {"method": request.method, "path": request.path})
        if "Allow" in error.headers:
            answer.headers["Allow"] = error.headers["Allow"]
        return answer
    except Exception as error:  # noqa: BLE001 - whatever it is, the client hears the standard's answer
        # Not log.exception: structlog may show the variables of each frame, and keys are among them.
        log.error("kme_fault", trace="".join(traceback.format_exception(error)))
        return _error(HTTPStatus.SERVICE_UNAVAILABLE, "error on the server side")
