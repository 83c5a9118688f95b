"""What /metrics of a relay says, by name and labels.
Standard: the text format of Prometheus, read by prometheus_client's own parser.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from relay.config import TCPAddress
from relay.formats import cms
from tests.testlib.sites import Site

SEALED_TYPE = (
    b"MIME-Version: 1.0\r\nContent-Transfer-Encoding: base64\r\n"
    b"Content-Type: application/pkcs7-mime; smime-type=authEnveloped-data\r\n\r\n"
    + base64.b64encode(cms.QUANTUM_KEY_NAMES[0])
)
"""What a message begins with that names a quantum key; what follows is base64 too, and cannot be read."""
STATUS = '[status]\nlisten = "127.0.0.1:0"\n'


async def asked(address: TCPAddress, path: str = "/metrics") -> str:
    async with aiohttp.ClientSession() as session, session.get(f"http://{address}{path}") as response:
        assert response.status == 200, await response.text()
        return await response.text()


@dataclass
class StatusNumbers:
    """What /metrics said, by name and labels."""

    samples: dict[tuple[str, frozenset[tuple[str, str]]], float]

    @classmethod
    def of(cls, text: str) -> StatusNumbers:
        families = list(text_string_to_metric_families(text))
        assert len({family.name for family in families}) == len(families), "a name stands there once"
        return cls({(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples})

    def of_name(self, name: str) -> dict[frozenset[tuple[str, str]], float]:
        return {labels: value for (each, labels), value in self.samples.items() if each == name}

    def sum(self, name: str, /, **labels: str) -> float:
        return sum(value for has, value in self.of_name(name).items() if has >= set(labels.items()))


async def numbers(address: TCPAddress) -> StatusNumbers:
    return StatusNumbers.of(await asked(address))


def with_status(site: Site, text: str = STATUS) -> Site:
    site.config_file.write_text(f"{site.config_file.read_text()}\n{text}")
    return site
