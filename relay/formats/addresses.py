"""Parses the addresses in a header field such as From, if all readers see the same ones; else raises InDoubt.
Standard: RFC 5322 3.4, and those obsolete forms of 4.4 that all read alike; RFC 6854 (groups), RFC 6532 (UTF-8).

The author of a message decides which protection it needs, and what a user may send. So any address that another
reader may find must be among those found here; otherwise the field is in doubt. It takes linear time.

**One rule for names that break the standard**, as in `[Jira] <clerk@bank.example>`. Where the only `@` of the field
stands in angle brackets at its end, all readers find this address, whatever the name is.
"""

from __future__ import annotations

import binascii
import re
from typing import NamedTuple

from relay.formats import charsets, words
from relay.formats.characters import is_printable, nfkc
from relay.formats.doubt import InDoubt

MAX_OCTETS = 8192
"""Maximum length of a field, in octets; a longer one is in doubt, since no real one is as long."""
MAX_ADDRESSES = 100
MAX_CHARACTERS = 1000
"""Maximum length of one address, in characters; an SMTP command line holds fewer."""
MAX_COMMENTS = 8
"""Maximum depth of nested comments; readers give up at different depths."""

_UNFIT = re.compile(r"[^\t -~\xa0-\U0010ffff]|[\u2028\u2029\ufeff]")
"""Control characters, and those that some readers drop or take for the end of a line."""
_EMPTY_LINE = re.compile(rb"\r\n[ \t]*(?:\r\n|\Z)|\\\r\n")
"""A line of blanks alone, where some readers end the header; and a line that ends in a backslash."""
_TOKEN = re.compile(
    r"""
      (?P<blank>   [ \t]+ )
    | (?P<word>    [A-Za-z0-9!\#$%&'*+/=?^_`{|}~.\x80-\U0010ffff-]+ )
    | (?P<special> [@<>,:;] )
    | (?P<quoted>  "[^"\\]*(?:\\.[^"\\]*)*" )
    | (?P<literal> \[[A-Za-z0-9.:-]+\] )
    | (?P<comment> \( )
    """,
    re.VERBOSE,
)
_PLAIN = re.compile(
    rb"""[ \t]*
    (?: "[A-Za-z0-9 ,.()'&_+-]*" [ \t]* (?=<) | [A-Za-z0-9'&_+ \t-]* (?=<) )?
    (<)?
    ([A-Za-z0-9!\#$%&'*+/^_`{|}~-]+(?:\.[A-Za-z0-9!\#$%&'*+/^_`{|}~-]+)*)
    @([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)
    (?(1)>)
    (?:\r\n)?""",
    re.VERBOSE,
)
"""One address with or without a display name, in the common form that all readers parse alike."""
PLAIN_OCTETS = 500
_ATOM = rb"[A-Za-z0-9!\#$%&'*+/^_`{|}~-]+"
_ALONE = re.compile(
    rb"((?:[^\x00-\x08\x0a-\x1f\x7f\"()\\<>@]|\\[A-Za-z0-9]|\"[^\x00-\x08\x0a-\x1f\x7f\"\\<>@]*+\"|\([^\x00-\x08\x0a-\x1f\x7f\"()\\<>@]*+\))*+)"
    rb"<(%b(?:\.%b)*+)@([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*+)>[ \t]*+" % (_ATOM, _ATOM)
)
"""Any name with quotes and parentheses in pairs, and one address behind it; a backslash stands before a letter."""
_COMMENT_SIGN = re.compile(r"\\.|[()]")
_LOCAL_IN_QUOTES = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~. -]+")
"""Characters allowed in a quoted local part; some readers fail on others, which nobody uses."""

_ENCODED_WORD = re.compile(r"=\?([\w.:+-]+)(?:\*[\w-]*)?\?([BbQq])\?([^\r\n?()<>@,;:\\\"\[\]]*)\?=", re.ASCII)
"""RFC 2047, 2 and 5 (3): nothing in it is special to a reader without encoded words."""
_SLOW_CHARSETS = frozenset({"punycode", "idna"})
"""Python codecs that are no charsets of mail."""


class Mailbox(NamedTuple):
    """One address: local part without quotes, domain or `[literal]`, both in their original case."""

    local: str
    domain: str

    def __str__(self) -> str:
        return f"{self.local}@{self.domain}"


def read_addresses(field: bytes, *, by_standard: bool = False) -> tuple[Mailbox, ...]:
    """The addresses in the value of an address field (raw octets, maybe folded); at least one.

    Some readers decode encoded words first, and must not find other addresses. `by_standard` is for what an address
    permits: no name may break the standard, since mail servers may make an address of a part of it. Raises InDoubt.
    """
    if len(field) <= PLAIN_OCTETS and (plain := _PLAIN.fullmatch(field)):
        return (Mailbox(plain[2].decode("ascii"), plain[3].decode("ascii")),)
    try:
        return _listed(field)
    except InDoubt:
        if by_standard or (alone := _alone(field)) is None:
            raise
        return (alone,)


def _alone(field: bytes) -> Mailbox | None:
    """The address that all readers find behind any name, if the field is so."""
    whole = field.removesuffix(b"\r\n")
    if len(field) > MAX_OCTETS or _EMPTY_LINE.search(whole):
        return None
    match = _ALONE.fullmatch(whole.replace(b"\r\n", b""))
    if match is None:
        return None
    name, local, domain = match.groups()
    try:
        shown = words.readings(name) if b"=?" in name else ()
    except InDoubt:
        return None
    if any(sign in text for text in shown for sign in "@<>") or (
        charsets.is_utf_8(name) and _UNFIT.search(name.decode())
    ):
        return None
    return Mailbox(local.decode("ascii"), domain.decode("ascii"))


def _listed(field: bytes) -> tuple[Mailbox, ...]:
    """The addresses by the standard."""
    text = _unfolded(field)
    parser = _Parser(_tokens(text))
    parser.addresses()
    mailboxes = parser.mailboxes
    if not mailboxes:
        raise InDoubt("it names nobody")
    if "=?" in text and ("@" in _decoded(text) or text.count("@") != len(mailboxes)):
        raise InDoubt("it has encoded words, and an @ within a name")
    if len(mailboxes) > MAX_ADDRESSES:
        raise InDoubt(f"it has more than {MAX_ADDRESSES} addresses")
    return tuple(dict.fromkeys(mailboxes))


def _unfolded(field: bytes) -> str:
    if len(field) > MAX_OCTETS:
        raise InDoubt(f"it is longer than {MAX_OCTETS} octets")
    field = field.removesuffix(b"\r\n")
    if _EMPTY_LINE.search(field):
        raise InDoubt("it goes on after an empty line")
    try:
        text = field.replace(b"\r\n", b"").decode("utf-8")
    except UnicodeDecodeError:
        raise InDoubt("it is not UTF-8") from None
    if unfit := _UNFIT.search(text):
        raise InDoubt(f"it has the character {unfit[0]!a}")
    if "=?" in _ENCODED_WORD.sub("=", text):
        raise InDoubt("it has an encoded word that is none")
    return text


class _Token(NamedTuple):
    """A word with its dots, the content of a quoted string, a literal, or a special character as its own kind."""

    kind: str
    text: str


_END = _Token("end", "")


def _tokens(text: str) -> list[_Token]:
    """All tokens but blanks and comments, followed by the end token."""
    place, tokens = 0, []
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise InDoubt(f"{text[place]!a} stands where it must not, or does not end")
        place = match.end()
        kind = match.lastgroup
        if kind == "comment":
            start, place = place, _comment_end(text, place)
            if ")" in _decoded(text[start:place]):
                raise InDoubt("it has an encoded word that ends a comment")
        elif kind == "quoted":
            tokens.append(_Token("quoted", re.sub(r"\\(.)", r"\1", match[0][1:-1])))
        elif kind == "special":
            tokens.append(_Token(match[0], match[0]))
        elif kind != "blank":
            tokens.append(_Token(str(kind), match[0]))
    return [*tokens, _END]


def _comment_end(text: str, start: int) -> int:
    """Returns the end of the comment that begins at `start`."""
    depth = 1
    for sign in _COMMENT_SIGN.finditer(text, start):
        depth += {"(": 1, ")": -1}.get(sign[0], 0)
        if not depth:
            return sign.end()
        if depth > MAX_COMMENTS:
            raise InDoubt(f"it has comments in more than {MAX_COMMENTS} comments")
    raise InDoubt("it has a comment that does not end")


class _Parser:
    """A parser in one pass, without backtracking; `mailboxes` are the addresses."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens, self._at = tokens, 0
        self.mailboxes: list[Mailbox] = []

    def addresses(self, end: str = "end") -> None:
        """Parses an address-list, or with `end` ";" the content of a group; entries may be empty."""
        while True:
            if self._tokens[self._at].kind not in (",", end):
                self._address(in_group=end == ";")
            kind = self._take().kind
            if kind == end:
                return
            if kind != ",":
                raise InDoubt("an address goes on where it should end")

    def _address(self, *, in_group: bool) -> None:
        words = self._words()
        kind = self._tokens[self._at].kind
        if kind == "@":
            mailbox = self._mailbox(words)
            self.mailboxes.append(mailbox)
            # `a@b.example <a@b.example>` is invalid but frequent, and has only one address.
            if self._tokens[self._at].kind == "<" and self._in_angles() != mailbox:
                raise InDoubt("an address stands before another one")
        elif kind == "<" and _is_phrase(words):
            self.mailboxes.append(self._in_angles())
        elif kind == ":" and words and _is_phrase(words) and not in_group:
            self._take()
            self.addresses(";")
        else:
            raise InDoubt("a name stands without an address")

    def _in_angles(self) -> Mailbox:
        self._take()
        mailbox = self._mailbox(self._words())
        self._expect(">")
        return mailbox

    def _mailbox(self, local: list[_Token]) -> Mailbox:
        self._expect("@")
        literal = self._tokens[self._at].kind == "literal"
        domain = self._take().text if literal else _dotted(self._words())
        mailbox = Mailbox(_local(local), domain)
        if len(mailbox.local) + len(domain) >= MAX_CHARACTERS:
            raise InDoubt(f"an address has more than {MAX_CHARACTERS} characters")
        whole = str(mailbox)
        if "=?" in whole or not is_printable(whole) or nfkc(whole) != whole:
            raise InDoubt("an address has what no address has")
        return mailbox

    def _words(self) -> list[_Token]:
        start = self._at
        while self._tokens[self._at].kind in ("word", "quoted"):
            self._at += 1
        return self._tokens[start : self._at]

    def _expect(self, kind: str) -> None:
        if self._take().kind != kind:
            raise InDoubt(f"an address has no {kind} where it should")

    def _take(self) -> _Token:
        """The next token; the end token is consumed once."""
        self._at += 1
        return self._tokens[self._at - 1]


def _is_phrase(words: list[_Token]) -> bool:
    """Whether these may be a name: words and dots (4.1, obs-phrase), not beginning with a dot."""
    return not words or words[0].kind != "word" or not words[0].text.startswith(".")


def _local(words: list[_Token]) -> str:
    if len(words) == 1 and words[0].kind == "quoted":
        if not _LOCAL_IN_QUOTES.fullmatch(words[0].text):
            raise InDoubt("a local part in quotes has characters that nobody uses")
        return words[0].text
    return _dotted(words)


def _dotted(words: list[_Token]) -> str:
    """One dot-atom: readers disagree about blanks and comments around its dots (4.4)."""
    if [token.kind for token in words] != ["word"] or "" in words[0].text.split("."):
        raise InDoubt("words stand where an address should")
    return words[0].text


def _decoded(text: str) -> str:
    """The decoded encoded words of a text, without invalid ones."""
    return "".join(_decoded_word(*word.groups()) for word in _ENCODED_WORD.finditer(text))


def _decoded_word(charset: str, encoding: str, encoded: str) -> str:
    raw = encoded.encode("utf-8")
    try:
        octets = binascii.a2b_qp(raw, header=True) if encoding in "Qq" else binascii.a2b_base64(raw + b"==")
        return octets.decode("latin-1" if charset.lower() in _SLOW_CHARSETS else charset, "replace")
    except (ValueError, LookupError):
        return ""
