"""What the parsers of real mail programs show of messages: jsmime (Thunderbird), mailparser, postal-mime and emailjs.
They run under nodejs, all messages in one process; two more are Python's own.
"""

from __future__ import annotations

import base64
import email
import email.header
import email.policy
import fnmatch
import functools
import json
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from urllib.parse import unquote_to_bytes

from tests.testlib.spellings import Spelling

NODE = Path(__file__).parent.parent / "node"
NPM_JUDGES = ("jsmime", "mailparser", "postal", "emailjs")


@dataclass(frozen=True)
class ParserView:
    """What one parser makes of a message: the outermost fields by name in lower case, and all file names."""

    fields: dict[str, tuple[str, ...]]
    names: tuple[str, ...]

    def has(self, spelling: Spelling) -> bool:
        """Whether it shows what the spelling's condition names, to somebody who reads it."""
        wanted = spelling.wanted
        if spelling.condition == "subject_tag":
            return any(seen(wanted) in seen(value) for value in self.fields.get("subject", ()))
        if spelling.condition == "header":
            name, colon, pattern = wanted.partition(":")
            values = self.fields.get(name.lower(), ())
            return any(_fits(value, pattern) for value in values) if colon else bool(values)
        return any(_fits(form, wanted) for name in self.names for form in saved(name))


def missing() -> str:
    """What is missing for them on this machine, or ""."""
    if shutil.which("node") is None:
        return "nodejs is not installed (deploy/test does it as root)"
    if not (NODE / "node_modules/postal-mime").is_dir():
        return "the parsers of mail programs are not installed (deploy/test does it: npm ci in tests/node)"
    return ""


def shown(messages: Sequence[bytes]) -> list[dict[str, ParserView]]:
    """What each of the parsers from npm shows of each message."""
    lines = b"".join(base64.b64encode(message) + b"\n" for message in messages)
    run = subprocess.run(["node", "judges.mjs"], cwd=NODE, input=lines, capture_output=True, check=True)
    replies = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(replies) == len(messages), run.stderr.decode()
    return [
        {
            judge: ParserView({name: tuple(values) for name, values in each["fields"].items()}, tuple(each["names"]))
            for judge, each in reply.items()
        }
        for reply in replies
    ]  # fmt: skip


def shown_by_python(message: bytes) -> dict[str, ParserView]:
    """What the two parsers of Python's `email` show of it; one that fails shows nothing."""
    found = {}
    for name, policy in {"email": email.policy.default, "email, compat32": email.policy.compat32}.items():
        try:
            found[name] = _shown(email.message_from_bytes(message, policy=policy))
        except Exception:  # noqa: BLE001 - it raises many kinds
            found[name] = ParserView({}, ())
    return found


def _shown(message: Message) -> ParserView:
    def text(value: object) -> str:
        if isinstance(value, email.header.Header) or "=?" in str(value):
            return str(email.header.make_header(email.header.decode_header(str(value))))
        return str(value)

    fields: dict[str, tuple[str, ...]] = {}
    for name in set(message):
        fields[name.lower()] = tuple(text(value) for value in message.get_all(name, []))
    names = tuple(text(each.get_filename()) for each in message.walk() if each.get_filename())
    return ParserView(fields, names)


@functools.cache
def seen(text: str) -> str:
    """The text as somebody sees it: no case, no form of letters, nothing invisible, blanks made single."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    kept = "".join(char for char in folded if not _invisible(char))
    return " ".join(kept.replace("\u2800", " ").split())


def _invisible(char: str) -> bool:
    if char.isspace():
        return False
    # Cf does not have the ignorable letters and marks, nor what is shown for octets that are no text.
    ignorable = re.fullmatch(
        "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0\ufe00-\ufe0f\ufffd\U000e0000-\U000e0fff]", char
    )
    return unicodedata.category(char) in {"Cf", "Cc"} or ignorable is not None


@functools.cache
def saved(name: str) -> frozenset[str]:
    """The names under which the attachment may be saved: as it is, and as an operating system or a program cuts it."""
    forms = set()
    for each in (name, unquote_to_bytes(name.encode(errors="replace")).decode("utf-8", "replace")):
        for part in (each, re.split(r"[/\\]", each)[-1]):
            for cut in (part, part.partition("\0")[0], part.partition("::$")[0]):
                forms |= {cut, seen(cut).rstrip(" .")}
    return frozenset(forms)


def _fits(text: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(seen(text), seen(pattern).replace("[", "[[]"))


def who_shows(spelling: Spelling, replies: Iterable[tuple[str, ParserView]]) -> list[str]:
    """The names of those that show what the spelling names."""
    return [judge for judge, each in replies if each.has(spelling)]
