"""How dec_keys is refused by what stands before a KME, and how a KME fails for a moment; half by name, half generated.
Standard: none of them is an answer of ETSI GS QKD 014 V1.1.1 about a key; most were seen at gateways and frameworks.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reply; `said` are words of it that an administrator must find again."""

    code: int
    body: str = ""
    said: str = ""
    headers: tuple[tuple[str, str], ...] = ()


NAMED = {
    "Kong without a route": Refusal(404, '{"message":"no Route matched with those values"}', "no Route matched"),
    "Kong without a key": Refusal(401, '{"message":"No API key found in request"}', "No API key found"),
    "Kong with a bad key": Refusal(403, '{"message":"API key not found"}', "API key not found"),
    "Azure": Refusal(404, '{"statusCode": 404, "message": "Resource not found"}', "Resource not found"),
    "Azure subscription": Refusal(
        401, '{"statusCode": 401, "message": "Access denied due to missing subscription key."}', "Access denied"
    ),
    "Spring 400": Refusal(400, '{"status":400,"error":"Bad Request","path":"/api/v1/keys/2/dec_keys"}', "Bad Request"),
    "Spring 404": Refusal(404, '{"status":404,"error":"Not Found"}', "Not Found"),
    "FastAPI": Refusal(404, '{"detail":"Not Found"}', "Not Found"),
    "FastAPI 405": Refusal(405, '{"detail":"Method Not Allowed"}', "Method Not Allowed"),
    "FastAPI 422": Refusal(422, '{"detail":[{"loc":["body"],"msg":"field required"}]}', "field required"),
    "unknown SAE": Refusal(400, '{"message":"The given slave SAE ID is unknown by this KME."}', "unknown by this KME"),
    "linked SAE": Refusal(400, '{"detail":"Linked KME with linked SAE ID 2 is not found"}', "Linked KME"),
    "Express": Refusal(404, "<pre>Cannot POST /api/v1/keys/2/dec_keys</pre>", "Cannot POST"),
    "Go": Refusal(404, "404 page not found", "page not found"),
    "Traefik": Refusal(503, "no available server", "no available server"),
    "Envoy": Refusal(503, "upstream connect error or disconnect/reset before headers", "upstream connect error"),
    "Google": Refusal(503, '{"message":"backend service not found"}', "backend service not found"),
    "nginx certificate": Refusal(400, "<html><title>400 No required SSL certificate was sent</title></html>", "No required"),
    "nginx 404": Refusal(404, "<html><h1>404 Not Found</h1>nginx</html>", "Not Found"),
    "nothing 400": Refusal(400),
    "nothing 404": Refusal(404),
    "nothing 401": Refusal(401),
    "login page": Refusal(302, "", "", (("Location", "https://login.example/"),)),
}  # fmt: skip
"""Refusals by name."""

_WORDS = (
    "the", "upstream", "service", "policy", "denied", "request", "quota", "tenant", "is", "not", "unknown", "missing",
    "for", "this", "resource", "here", "found", "key",
)  # fmt: skip
_FIELDS = ("message", "error", "detail", "title", "reason", "Msg", "fault")


def _generated(number: int) -> dict[str, Refusal]:
    """Refusals of codes and forms at random, the same in each run."""
    chance = random.Random(5)
    found = {}
    for index in range(number):
        code = chance.choice((301, 307, 400, 401, 403, 404, 406, 407, 409, 410, 413, 415, 421, 431, 451, 500, 501, 511))
        said = " ".join(chance.sample(_WORDS, 4))
        field = chance.choice(_FIELDS)
        body = chance.choice((
            json.dumps({field: said}), json.dumps({"status": code, field: said}), json.dumps([{field: said}]),
            json.dumps({"error": {"code": code, field: said}}), f"<html><body><p>{said}</p></body></html>", said,
            json.dumps(said),
        ))  # fmt: skip
        found[f"generated {index}: {code}"] = Refusal(code, body, said)
    return found


REFUSALS = NAMED | _generated(22)
"""45 forms in which dec_keys is refused without a word about a key."""

NOT_THERE = {
    "the standard's": Refusal(400, '{"message":"one or more keys specified are not found on KME"}'),
    "with details": Refusal(
        400, '{"message":"one or more keys specified are not found on KME","details":[{"key_ID":"a"}]}'
    ),
    "next-door-key-simulator": Refusal(400, '{"message":"Some of the requested keys do not exist in this KME."}'),
    "next-door-key-simulator, none": Refusal(
        401, '{"message":"The given master_sae_id is not involved in any key exchanges."}'
    ),
    "py-qkd-kme-sim": Refusal(400, '{"detail":"Unable, the key was not found by id"}'),
    "py-qkd-kme-sim, none": Refusal(400, '{"detail":"Unable, because there are 0 activated keys remaining"}'),
    "Qumail's simulator": Refusal(404, '{"message":"None of the requested keys exist in this KME."}'),
    "easy-kme": Refusal(401, '{"detail":"Not authorized for requested keys"}'),
    "qkd_kme_server": Refusal(404, '{"message": "Element not found"}'),
    "a KME in the cloud": Refusal(403, '{"message":"Key expired"}'),
    "in plain words": Refusal(404, '{"message":"Key not found"}'),
}
"""All that means "not there": the words of the standard, and of KMEs that were met."""

_PAGE = "<html><h1>{} Sorry</h1></html>"
PASSING = {
    "504": Refusal(504, _PAGE.format(504)),
    "502": Refusal(502, _PAGE.format(502)),
    "500": Refusal(500, _PAGE.format(500)),
    "503": Refusal(503, '{"message":"service failure"}'),
    "503 with Retry-After": Refusal(503, "", headers=(("Retry-After", "2"),)),
    "429": Refusal(429, "", headers=(("Retry-After", "2"),)),
    "302": Refusal(302, "", headers=(("Location", "https://login.example/"),)),
    "401": Refusal(401),
    "403": Refusal(403, _PAGE.format(403)),
    "404 of an ingress": Refusal(404, "default backend - 404"),
    "400 without a word": Refusal(400),
    "HTML": Refusal(200, _PAGE.format(200)),
    "an empty 200": Refusal(200),
    "another object": Refusal(200, '{"status":"starting"}'),
}
"""14 faults that pass: the next attempt is answered with the keys."""
