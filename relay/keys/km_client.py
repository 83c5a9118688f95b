"""The optimized KM client: one KME, asked over pooled connections with retries, backoff and time limits.
Standard: ETSI GS QKD 014 V1.1.1, read as tolerantly as real KMEs need and never so that a key is doubted.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import aiohttp
import structlog

from relay.errors import (
    ConfigError,
    KeyNotFound,
    KeyUnavailable,
    KMEExhausted,
    KMEMisconfigured,
    KMEUnreachable,
)
from relay.keys.contract import Key
from relay.keys.development import default_state_dir, endpoints
from relay.keys.replies import KeyStatus, json_body, keys_from_container, status_from_reply, text_of_error

log = structlog.get_logger(__name__)

MAX_REPLY_OCTETS = 8 * 1024 * 1024
MAX_BACKOFF_S = 30.0


class OptimizedKMClient:
    """A client of one KME, for one SAE of ours (the one that the client certificate names).

    Retries are made only where they cannot do harm: a request that may have been carried out is repeated for
    enc_keys (the first keys are burnt) and dec_keys alike, but always as a new POST, never behind our back.
    """

    def __init__(
        self,
        url: str,
        *,
        ca: Path,
        certificate: Path,
        key: Path,
        retry_attempts: int = 3,
        retry_delay: float = 1,
        timeout: float = 10,
        connect_timeout: float = 2,
        pool_connections: int = 5,
        pool_maxsize: int = 10,
    ) -> None:
        """`url` is https and may carry a path prefix; the files are PEM.

        `timeout` and `connect_timeout` are seconds for one try; `retry_attempts` counts the tries after the
        first; `retry_delay` (seconds) is the first backoff, doubled each time and fully jittered. At most
        `pool_maxsize` connections are open to one host, `pool_connections` times that in all.
        Raises ConfigError when the certificate files cannot be used.
        """
        self.url = url.rstrip("/")
        self.retry_attempts = retry_attempts
        self.retry_delay = retry_delay
        self._tls = _client_tls(ca, certificate, key)
        self._timeout = aiohttp.ClientTimeout(total=timeout, connect=connect_timeout)
        self._limits = (pool_connections * pool_maxsize, pool_maxsize)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes all connections. The client may be used again afterwards."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    async def check_key_status(self, slave_sae_id: int | str) -> KeyStatus:
        """How many keys the KME has for this slave SAE, and its limits (GS QKD 014, 5.1). Raises KeyUnavailable."""
        return status_from_reply(await self._call("GET", slave_sae_id, "status"))

    async def request_enc_keys(
        self,
        slave_sae_id: int | str,
        number: int = 1,
        size: int = 256,
        *,
        additional_slave_SAE_IDs: Sequence[str] = (),
        extension_mandatory: Sequence[dict[str, Any]] = (),
        extension_optional: Sequence[dict[str, Any]] = (),
    ) -> list[Key]:
        """`number` fresh keys of `size` bits shared with the slave SAE (GS QKD 014, 5.2).

        Fewer keys than asked for may come; none is KMEExhausted. Raises KeyUnavailable.
        """
        request: dict[str, Any] = {"number": number, "size": size}
        if additional_slave_SAE_IDs:
            request["additional_slave_SAE_IDs"] = list(additional_slave_SAE_IDs)
        if extension_mandatory:
            request["extension_mandatory"] = list(extension_mandatory)
        if extension_optional:
            request["extension_optional"] = list(extension_optional)
        reply = await self._call("POST", slave_sae_id, "enc_keys", request)
        keys = keys_from_container(reply, at_most=number, size=size)
        if not keys:
            raise KMEExhausted(f"{self.url}: no key left for SAE {slave_sae_id}")
        return keys

    async def request_dec_keys(self, master_sae_id: int | str, key_IDs: Sequence[str]) -> list[Key]:
        """The keys with these IDs, in their order, which `master_sae_id` drew (GS QKD 014, 5.3).

        The KME gives each of them once: keep them safe before anything else. Raises KeyNotFound when the KME
        does not know one of them, another KeyUnavailable when it cannot be asked.
        """
        request = {"key_IDs": [{"key_ID": key_ID} for key_ID in key_IDs]}
        reply = await self._call("POST", master_sae_id, "dec_keys", request)
        found = {key.key_ID: key for key in keys_from_container(reply, at_most=len(key_IDs))}
        missing = [key_ID for key_ID in key_IDs if key_ID not in found]
        if missing:
            raise KeyNotFound(f"{self.url}: the reply lacks {len(missing)} of {len(key_IDs)} keys: {missing[0]}")
        return [found[key_ID] for key_ID in key_IDs]

    async def _call(
        self, method: str, sae_id: int | str, call: str, request: dict[str, Any] | None = None
    ) -> Any:
        """One call with its retries: a fault that may pass is tried again after a jittered, growing delay."""
        attempt = 0
        while True:
            try:
                return await self._try(method, sae_id, call, request)
            except KMEUnreachable as error:
                if attempt >= self.retry_attempts:
                    raise
                delay = random.uniform(0, min(MAX_BACKOFF_S, self.retry_delay * 2**attempt))  # noqa: S311
                attempt += 1
                log.warning(
                    "kme_retry", kme=self.url, call=call, cause=str(error), attempt=attempt, delay_s=round(delay, 3)
                )
                await asyncio.sleep(delay)

    async def _try(self, method: str, sae_id: int | str, call: str, request: dict[str, Any] | None) -> Any:
        url = f"{self.url}/api/v1/keys/{quote(str(sae_id), safe='')}/{call}"
        try:
            async with self._open_session().request(method, url, json=request, allow_redirects=False) as reply:
                body = await _read_bounded(reply.content)
                code = reply.status
        except aiohttp.ClientConnectorCertificateError as error:
            raise KMEMisconfigured(f"{self.url}: its certificate is not accepted: {error}") from error
        except aiohttp.ClientConnectorSSLError as error:
            raise KMEMisconfigured(f"{self.url}: TLS failed: {error}") from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            if isinstance(error, ssl.SSLError) or isinstance(error.__cause__, ssl.SSLError):
                raise KMEMisconfigured(f"{self.url}: TLS failed, is our certificate known there? {error}") from error
            raise KMEUnreachable(f"{self.url}: {call}: {type(error).__name__}: {error}") from error
        if code != 200:
            raise _fault(self.url, call, code, body)
        return json_body(self.url, body)

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            total, per_host = self._limits
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=total, limit_per_host=per_host, ssl=self._tls),
                timeout=self._timeout,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                headers={"Accept": "application/json", "Accept-Encoding": "identity"},
            )
        return self._session


async def _read_bounded(content: aiohttp.StreamReader) -> bytes:
    body = bytearray()
    async for chunk in content.iter_chunked(65536):
        body += chunk
        if len(body) > MAX_REPLY_OCTETS:
            raise KMEUnreachable(f"the reply is larger than {MAX_REPLY_OCTETS} octets")
    return bytes(body)


def _fault(url: str, call: str, code: int, body: bytes) -> KeyUnavailable:
    """The typed error for a reply other than 200, by call, code and message (real KMEs differ widely)."""
    message = text_of_error(body)
    what = f"{url}: {call}: HTTP {code}: {message}"
    about = message.lower()
    if call == "dec_keys" and (code in (404, 410) or "not found" in about or "expired" in about):
        return KeyNotFound(what)
    if call == "enc_keys" and (code == 503 or (code in (400, 404) and _says_exhausted(about))):
        return KMEExhausted(what)
    if code in (429, 500, 502, 503, 504):
        return KMEUnreachable(what)
    return KMEMisconfigured(what)


def _says_exhausted(about: str) -> bool:
    return any(word in about for word in ("exhaust", "insufficient", "not enough", "no key", "unavailable"))


def _client_tls(ca: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    for path in (ca, certificate, key):
        if not path.is_file():
            raise ConfigError(f"{path}: no such file; it is needed to talk to the KME")
    try:
        context = ssl.create_default_context(cafile=str(ca))
        context.load_cert_chain(str(certificate), str(key))
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"{certificate}, {key} or {ca}: cannot be used for TLS: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def get_optimized_km_clients(state_dir: Path | None = None) -> tuple[OptimizedKMClient, OptimizedKMClient]:
    """Clients of the development pair: Alice's of KM1 (she is SAE 2) and Bob's of KM2 (he is SAE 1).

    `state_dir` is what `qumail-relay kme --state` was given. Raises ConfigError where it has not yet run.
    """
    state = state_dir or default_state_dir()
    if not (state / "ca.pem").is_file():
        raise ConfigError(f"{state}: no development key servers here; start them with `qumail-relay kme`")
    first, second = endpoints(state)
    return tuple(  # type: ignore[return-value]
        OptimizedKMClient(
            url, ca=state / "ca.pem", certificate=state / f"{sae}.pem", key=state / f"{sae}.key"
        )
        for url, sae in ((first, "sae-2"), (second, "sae-1"))
    )
