"""Addresses as policies/README.md reads and compares them, a second time: whose they are, and which are in doubt.
Written from that document and RFC 5322 alone; nothing of relay/ is used here.
"""

from __future__ import annotations

import base64
import quopri
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

QUOTABLE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 !#$%&'*+/=?^_`{|}~.-")
SPECIAL = frozenset('()<>[]:;@\\,."')
LETTERS = frozenset({"Ll", "Lo", "Lm", "Mn", "Mc", "Nd"})
IGNORABLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
ENCODED_WORD = re.compile(r"=\?[^?\s]+\?([bq])\?([^?\s]*)\?=", re.IGNORECASE)
MOST_COMMENTS, MOST_ADDRESSES, MOST_OCTETS, MOST_CHARACTERS = 8, 100, 8192, 1000

REMEMBERED = 20_000
"""Number of answers that each function remembers: the same addresses are asked for again and again."""


class InDoubtError(Exception):
    """What was read may be read otherwise."""


@dataclass(frozen=True)
class Address:
    """As it is compared; a `literal` has no domain."""

    local: str
    domain: str
    literal: bool = False


# --- how addresses are compared ------------------------------------------------------------------------------------


def lowered(local: str) -> str:
    """A local part without quotes, as it is compared."""
    composed = unicodedata.normalize("NFC", local)
    return unicodedata.normalize("NFC", "".join(char.lower() for char in composed))


@lru_cache(maxsize=REMEMBERED)
def domain_of(text: str) -> str | None:
    """In lower case and A-labels, if it is one."""
    labels = [_label(label) for label in text.split(".")]
    domain = ".".join(label or "" for label in labels)
    right = all(label and len(label) <= 63 for label in labels) and len(domain) <= 253
    return domain if right else None


def _label(text: str) -> str | None:
    if re.fullmatch(r"[A-Za-z0-9_-]+", text):
        return text.lower()
    label = "".join(char.lower() for char in text)
    if not label or IGNORABLE.search(label):
        return None
    if not all(char in "-\u3007" or unicodedata.category(char) in LETTERS or "0" <= char <= "9" for char in label):
        return None
    other = label.replace("\u00df", "").replace("\u03c2", "")
    if unicodedata.normalize("NFKC", other.casefold()) != other or unicodedata.normalize("NFKC", label) != label:
        return None
    return "xn--" + label.encode("punycode").decode()


@lru_cache(maxsize=REMEMBERED)
def local_of(recipient: str) -> tuple[str, str] | None:
    """Local part and domain of a recipient as they are compared; none where no file can cover it."""
    local, at, domain = recipient.rpartition("@")
    known = domain_of(domain)
    if not at or not local or known is None or len(recipient) > MOST_CHARACTERS:
        return None
    if local.startswith('"'):
        quoted = re.fullmatch(r'"((?:[^"\\]|\\.)*)"', local, re.DOTALL)
        return (lowered(re.sub(r"\\(.)", r"\1", quoted[1], flags=re.DOTALL)), known) if quoted else None
    wrong = any(char in '"(),:;<>@[\\]' or char.isspace() or unicodedata.category(char) == "Cc" for char in local)
    return None if wrong else (lowered(local), known)


@lru_cache(maxsize=REMEMBERED)
def folded(pattern: str) -> str:
    """A pattern as it is compared."""
    local, _, domain = pattern.rpartition("@")
    if local.startswith('"') and local.endswith('"'):
        local = re.sub(r"\\(.)", r"\1", local[1:-1])
    known = domain.lower() if "*" in domain else domain_of(domain)
    return f"{lowered(local)}@{known}"


# --- who is named --------------------------------------------------------------------------------------------------


@lru_cache(maxsize=REMEMBERED)
def sender_of(sender: str) -> Address | None:
    """The address of an envelope sender, or none if it is in doubt."""
    try:
        [found] = _AddressReader(f"<{sender.removesuffix('.')}>").addresses()
    except (InDoubtError, ValueError):
        return None
    return found


def addresses_in(fields: Sequence[str]) -> list[Address] | None:
    """All whom these fields name; none if one of them is in doubt."""
    found = _addresses_in(tuple(fields))
    return None if found is None else list(found)


@lru_cache(maxsize=REMEMBERED)
def _addresses_in(fields: tuple[str, ...]) -> list[Address] | None:
    found: list[Address] = []
    if sum(len(each.encode("utf-8", "surrogateescape")) for each in fields) > MOST_OCTETS:
        return None
    for each in fields:
        try:
            found += _AddressReader(each).addresses()
        except InDoubtError:
            alone = _behind_any_name(each)
            if alone is None:
                return None
            found.append(alone)
    return found if len(found) <= MOST_ADDRESSES else None


def _behind_any_name(field: str) -> Address | None:
    """The address whose `@` is the only one, in angle brackets at the end, whatever the name before it is."""
    lines = field.split("\r\n")
    if any(not line.strip(" \t") for line in lines[1:]) or any(line.endswith("\\") for line in lines):
        return None
    match = re.fullmatch(r"([^<>@]*)<([^<>@]*@[^<>@]*)>[ \t]*", "".join(lines))
    if match is None or not _is_a_name(match[1]):
        return None
    local, _, domain = match[2].partition("@")
    atoms = re.fullmatch(r"[A-Za-z0-9!#$%&'*+/^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/^_`{|}~-]+)*", local)
    known = domain_of(domain) if domain.isascii() else None
    return Address(lowered(local), known) if atoms and known else None


def _is_a_name(name: str) -> bool:
    """Quotes and parentheses in pairs, backslashes before letters and digits, right encoded words."""
    if any(char != "\t" and (unicodedata.category(char) == "Cc" or char in "\u2028\u2029\ufeff") for char in name):
        return False
    left = re.sub(r'"[^"\\]*"|\([^"()\\]*\)|\\[A-Za-z0-9]', "", name)
    if re.search(r'["()\\]', left):
        return False
    word = re.compile(r"=\?[^?*\s]+(?:\*[A-Za-z0-9-]*)?\?([bq])\?([!->@-~]+)\?=", re.IGNORECASE)
    if re.search(r"=\?[^?]*\?[bq]\?", word.sub(" ", name), re.IGNORECASE):
        return False
    decoded = [
        quopri.decodestring(each[2].encode()) if each[1] in "qQ" else _base64(each[2]) for each in word.finditer(name)
    ]
    return not any(sign in octets for octets in decoded for sign in (b"@", b"<", b">"))


def _base64(text: str) -> bytes:
    """As much as can be read."""
    signs = re.sub(r"[^A-Za-z0-9+/]", "", text)
    return base64.b64decode(signs[: len(signs) - (len(signs) % 4 == 1)] + "==")


class _AddressReader:
    """Reads a list of addresses by RFC 5322, 3.4."""

    def __init__(self, text: str) -> None:
        lines = text.split("\r\n")
        if any(not line.strip(" \t") for line in lines[1:]) or any(line.endswith("\\") for line in lines):
            raise InDoubtError("folding")
        if any(not line.startswith((" ", "\t")) for line in lines[1:]):
            raise InDoubtError("not folded")
        self.text = "".join(lines)
        for char in self.text:
            if char != "\t" and (unicodedata.category(char) in ("Cc", "Cs") or char in "\u2028\u2029\ufeff"):
                raise InDoubtError("control characters")
        self.tokens: list[tuple[str, str]] = []
        self.comments: list[str] = []
        self._tokenize()
        self.place = 0

    # --- words

    def _tokenize(self) -> None:
        text, place = self.text, 0
        while place < len(text):
            char = text[place]
            if char in " \t":
                place += 1
            elif char == "(":
                end = self._comment(place)
                self.comments.append(text[place + 1 : end - 1])
                place = end
            elif char == '"':
                match = re.compile(r'"((?:[^"\\]|\\.)*)"').match(text, place)
                if not match:
                    raise InDoubtError("quotes")
                self.tokens.append(("quoted", re.sub(r"\\(.)", r"\1", match[1])))
                place = match.end()
            elif char == "[":
                match = re.compile(r"\[[^\[\]\\]*\]").match(text, place)
                if not match:
                    raise InDoubtError("brackets")
                self.tokens.append(("literal", match[0]))
                place = match.end()
            elif char in SPECIAL:
                self.tokens.append((char, char))
                place += 1
            else:
                end = place
                while end < len(text) and text[end] not in SPECIAL and text[end] not in " \t":
                    end += 1
                self.tokens.append(("atom", text[place:end]))
                place = end

    def _comment(self, place: int) -> int:
        depth = 0
        while place < len(self.text):
            char = self.text[place]
            place += 2 if char == "\\" else 1
            depth += (char == "(") - (char == ")")
            if depth > MOST_COMMENTS:
                raise InDoubtError("too deep")
            if not depth:
                return place
        raise InDoubtError("a comment without end")

    # --- grammar

    def addresses(self) -> list[Address]:
        """At least one."""
        found: list[Address] = []
        while self._next():
            if self._skip(","):
                continue
            found += self._address(group=True)
            if self._next() and not self._skip(","):
                raise InDoubtError("no comma")
        if not found:
            raise InDoubtError("nobody")
        self._check_words(len(found))
        return found

    def _check_words(self, number: int) -> None:
        if "=?" not in self.text:
            return
        if "=?" in ENCODED_WORD.sub("", self.text) or self.text.count("@") != number:
            raise InDoubtError("encoded words")
        for word in ENCODED_WORD.finditer(self.text):
            octets = quopri.decodestring(word[2].encode()) if word[1] in "qQ" else _base64(word[2])
            if b"@" in octets or any(word[0] in each and b")" in octets for each in self.comments):
                raise InDoubtError("signs in encoded words")

    def _next(self) -> str:
        return self.tokens[self.place][0] if self.place < len(self.tokens) else ""

    def _skip(self, kind: str) -> bool:
        found = self._next() == kind
        self.place += found
        return found

    def _address(self, *, group: bool) -> list[Address]:
        start = self.place
        try:
            first: Address | None = self._addr_spec()
        except InDoubtError:
            self.place, first = start, None
        if first is not None:
            if self._next() == "<" and self._angle() != first:
                raise InDoubtError("an address in front of another")
            return [first]
        words = 0
        while self._next() in ("atom", "quoted") or (words and self._next() == "."):
            self.place += 1
            words += 1
        if self._next() == "<":
            return [self._angle()]
        if not (words and group and self._skip(":")):
            raise InDoubtError("neither address nor group")
        found: list[Address] = []
        while not self._skip(";"):
            if self._skip(","):
                continue
            found += self._address(group=False)
            if self._next() not in (",", ";"):
                raise InDoubtError("no end of a group")
        return found

    def _angle(self) -> Address:
        if not self._skip("<"):
            raise InDoubtError("no <")
        found = self._addr_spec()
        if not self._skip(">"):
            raise InDoubtError("no >")
        return found

    def _addr_spec(self) -> Address:
        quoted = self._next() == "quoted"
        local = self._taken() if quoted else self._dot_atom()
        if not self._skip("@"):
            raise InDoubtError("no @")
        literal = self._next() == "literal"
        domain = self._taken() if literal else self._dot_atom()
        if quoted and not QUOTABLE.issuperset(local):
            raise InDoubtError("signs in quotes")
        whole = f"{local}@{domain}"
        wrong = any(char != " " and unicodedata.category(char)[0] in "CZ" for char in whole)
        wrong = wrong or unicodedata.normalize("NFKC", whole) != whole
        if wrong or len(whole) >= MOST_CHARACTERS or "=?" in whole:
            raise InDoubtError("signs in an address")
        if literal:
            return Address(lowered(local), domain, literal=True)
        known = domain_of(domain)
        if known is None:
            raise InDoubtError("not a domain")
        return Address(lowered(local), known)

    def _taken(self) -> str:
        self.place += 1
        return self.tokens[self.place - 1][1]

    def _dot_atom(self) -> str:
        parts = []
        while True:
            if self._next() != "atom":
                raise InDoubtError("no atom")
            parts.append(self._taken())
            if not self._skip("."):
                return ".".join(parts)
