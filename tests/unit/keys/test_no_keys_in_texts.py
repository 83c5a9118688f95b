"""What a KME wrote is shown without any key, however it spells one; what it says in words stays as it is.
Standard: ETSI GS QKD 014 V1.1.1, 6.5 (errors); RFC 4648 and the spellings of common languages and tools.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import random
import re
import textwrap
from collections.abc import Callable

import pytest

from relay.errors import KeyUnavailable
from relay.keys.replies import text_of_error, without_keys
from tests.testlib.fake_kme import Certificates, FakeKME

MOST_NO_WORD = 15
"""Maximum number of letters and digits beside the words that a text may show."""
SPELLINGS: dict[str, Callable[[bytes], str]] = {
    "hexadecimal": bytes.hex,
    "capitals": lambda key: key.hex().upper(),
    "spaced": lambda key: key.hex(" "),
    "spaced by four": lambda key: key.hex(" ", 2),
    "colons": lambda key: key.hex(":"),
    "hyphens": lambda key: key.hex("-"),
    "lines": lambda key: "\n".join(textwrap.wrap(key.hex(), 8)),
    "integers": lambda key: str(list(key)),
    "integers in lines": lambda key: "\n".join(map(str, key)),
    "signed integers": lambda key: str([each - 128 for each in key]),
    "JSON in JSON": lambda key: json.dumps(json.dumps({"data": list(key)})),
    "0x": lambda key: ", ".join(map(hex, key)),
    "octal": lambda key: "".join(f"\\{each:o}" for each in key),
    "bits": lambda key: " ".join(f"{each:08b}" for each in key),
    "escapes": lambda key: "".join(f"\\x{each:02x}" for each in key),
    "percent": lambda key: "".join(f"%{each:02X}" for each in key),
    "words of C": lambda key: " ".join(f"0x{key[at : at + 4].hex()}" for at in range(0, len(key), 4)),
    "number": lambda key: str(int.from_bytes(key)),
    "base64": lambda key: base64.b64encode(key).decode(),
    "base64url": lambda key: base64.urlsafe_b64encode(key).decode().rstrip("="),
    "base32": lambda key: base64.b32encode(key).decode(),
    **{
        f"base64 in lines of {width}": lambda key, width=width: "\n".join(  # type: ignore[misc]
            textwrap.wrap(base64.b64encode(key).decode(), width)
        )
        for width in (4, 8, 16, 20)
    },
}
WORDS = [
    "size shall be a multiple of 8",
    "one or more keys specified are not found on KME",
    "not all extension_mandatory parameters are supported",
    "0 activated keys remaining",
    "exceeds the generated key count. Try again later",
    "no Route matched with those values",
    "KeyNotFoundException in org.springframework.web.client, line 142",
    "Schlüssel nicht verfügbar: Fehler 42",
]


@pytest.mark.parametrize("text", WORDS)
def test_what_a_kme_says_in_words_is_shown_whole(text: str) -> None:
    assert without_keys(text) == text
    assert text_of_error(json.dumps({"message": text}).encode()).text == text


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_spelling_of_a_key_is_shown(spelling: str) -> None:
    chance = random.Random(spelling)
    for _ in range(50):
        key = SPELLINGS[spelling](chance.randbytes(32))
        for body in (json.dumps({"message": f"refused: {key} for nobody"}), f"<html>refused: {key} for nobody</html>"):
            shown = text_of_error(body.encode()).text
            assert "[...]" in shown
            left = re.sub(r"html|refused|for nobody|data", "", shown)
            assert len(re.findall("[A-Za-z0-9]", left)) <= MOST_NO_WORD, (key, shown)


async def test_a_reply_that_is_no_http_shows_no_key(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    key = base64.b64encode(random.Random(1).randbytes(32)).decode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'{"keys": [{"key_ID": "1", "key": "%s"}]}\r\n\r\n' % key.encode())
        writer.close()

    async with await asyncio.start_server(answer, "localhost", 0, ssl=certificates.server_tls("localhost")) as server:
        kme = FakeKME(certificates, port=server.sockets[0].getsockname()[1])
        with caplog.at_level(logging.DEBUG, logger="relay.keys"):
            async with kme.client(timeout=5, retry_delay=0.01) as client:
                with pytest.raises(KeyUnavailable) as refused:
                    await client.request_enc_keys("bob")
    assert "what came is no HTTP answer" in str(refused.value)
    assert key[:12] not in caplog.text + str(refused.value)
