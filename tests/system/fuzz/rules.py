"""Fuzz target for what policy rules look at in a message: subject, fields, attachments, authors, the time it has waited.
Standard: policies/README.md; a message can raise its level and never lower it.
"""

from __future__ import annotations

import functools
import tempfile
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from relay.errors import MalformedMessage
from relay.policy.content import MessageFacts
from relay.policy.decide import PolicySet
from relay.policy.load import load_policies
from tests.system.fuzz import messages
from tests.system.fuzz.target import Target, check
from tests.testlib import hostile, mails

NOW = datetime(2026, 11, 25, tzinfo=UTC)
PEERS = {"bob": ["bob.example"], "carol": ["carol.example"]}

_POLICY = """
levels = ["rsa"]
require = "aes"

[[when]]
subject_tag = ["[secret]"]
levels = ["otp"]

[[when]]
header = ["X-Secret: yes*"]
levels = ["aes"]

[[when]]
attachment_name = ["*.pdf"]
levels = ["aes"]
"""

WORDS = (
    b"Subject: [secret] x\r\n", b"X-Secret: yes\r\n", b"=?utf-8?b?W3NlY3JldF0=?=", b"=?utf-8?q?=5Bsecret=5D?=", b"=?x?b?!?=",
    b"=?utf-7?q?+AGE?=", b"=?idna?q?xn--a?=", b"=?zlib?b?AAAA?=", b"=?unicode?b?AGE?=", b"=?iso-2022-jp?b?GyRC?= ", b"=?us-ascii?q?=e4 = 4?=", b"=?cp9?q?a?=", b"=?x?q?a=00=?=", b"=?utf-8?b?A-=A?=",
    "\u202e\u0315\u0300\ufdfa".encode(), b"=?utf-8?b?" + b"A" * 2000 + b"?=", b"=?" * 300,
    b'Content-Type: multipart/mixed; boundary="b1"\r\n\r\n', b"Content-Type: multipart/digest; boundary=b1\r\n\r\n", b"--b1\r\n",
    b"--b1--\r\n", b"--b1", b"Content-Type: message/rfc822\r\n\r\n", b"boundary*0=b;boundary*1=1", b"boundary*=utf-8''b1",
    b"boundary*=no-such''b1", b'Content-Disposition: attachment; filename="a.pdf"\r\n', b"filename*=utf-16''%00a", b"filename*0*=x''%ff",
    b"name*99999999999999999999=x", b"From: a@b.example, c@d.example\r\n", b"From: " + b"a@b.example," * 500 + b"\r\n", b'From: "', b"From: (((\r\n",
    b"Received: by x; Wed, 25 Nov 2026 10:00:00 +0000\r\n", b"; Wed, 99 Nov 99999 99:99:99 +9999\r\n", b"\xff\xfe", b"\0", *messages.WORDS,
)  # fmt: skip


def seeds() -> list[bytes]:
    """Messages with structure, and all those of the MIME target that are no sealed ones."""
    nested = mails.random_attachment(300).replace(b"text/plain\r\n\r\n", b"message/rfc822\r\n\r\n" + mails.plain())
    named = mails.random_attachment(300).replace(b"secret.bin", b"figures.pdf").replace(b"octet-stream", b"pdf")
    return [nested, named, mails.plain(subject="[secret] figures"), *messages.seeds()[:10]]


def target(data: bytes) -> None:
    """What policy decides for the message is never less than what it decides without it."""
    content = MessageFacts(data)
    with suppress(MalformedMessage):
        content.read()
        waited = content.waited(NOW)
        check(waited is None or waited >= 0, "it has waited since a time to come")
        decision = _policies().decide("ann@alice.example", "ben@bob.example", content)
        check(decision.levels in (("rsa",), ("aes",), ("otp",)), f"levels that nobody has written: {decision.levels}")
        required = _policies().require("ann@alice.example", content)
        check(required.missed("", "") is not None, "what is required was forgotten")
        check(required.missed("pqc", "bob") is not None, "a signature passed for a quantum key")


@functools.cache
def _policies() -> PolicySet:
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "default.toml").write_text(_POLICY)
        return load_policies(Path(name), PEERS)


RULES = Target("rules", target, seeds, WORDS, hostile.MAKERS)
