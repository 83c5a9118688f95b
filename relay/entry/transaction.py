"""A mail transaction before its content: sender, recipients, and the recipients not accepted.
Standard: RFC 5321 4.1.2 (paths), RFC 1870 (SIZE), RFC 6152 (BODY), RFC 6531 (SMTPUTF8), RFC 3461 (DSN, 4: xtext).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from relay.entry import RecipientChecks
from relay.entry.listening import SocketServer
from relay.errors import MessageTooBig, Refuse, RelayError, TooManyRecipients
from relay.formats import mime
from relay.mail import MAILBOX, Envelope, Mail, Origin, Recipient, never_absent

MAX_PATH = 512
"""Maximum path length, in characters; RFC 5321 4.5.3.1.3 requires 256, and longer return paths exist."""
_ADDRESS = re.compile(r'(?:"(?:[^"\\\x00-\x1f\x7f]|\\[\x20-\x7e])*"|[^"<>\s\x00-\x1f\x7f])*')
_PATH = re.compile(rf"<({_ADDRESS.pattern})>(?:\s+(\S.*))?\Z")
_SOURCE_ROUTE = re.compile(r"^@[^:]*:")
_SIZE = re.compile(r"[0-9]{1,20}")
_NOTIFY = re.compile(r"NEVER|(?:SUCCESS|FAILURE|DELAY)(?:,(?:SUCCESS|FAILURE|DELAY))*", re.IGNORECASE)
_XTEXT = re.compile(r"(?:[\x21-\x2a\x2c-\x3c\x3e-\x7e]|\+[0-9A-F]{2})+")
_ORCPT = re.compile(rf"[A-Za-z0-9-]+;{_XTEXT.pattern}")
_UTF8_ORCPT = re.compile(r"utf-8;[^\s\x00-\x20+=\x7f]+", re.IGNORECASE)
"""RFC 6533, 3: with SMTPUTF8."""
_NOT_SHOWN = re.compile(r"[^\x21-\x7e]|[()<>\\]")


class BadParameter(Refuse):
    """A command with a syntax error; the reply names the part."""

    def __init__(self, code: int, status: str, text: str) -> None:
        self._reply = f"{code} {status} {text}"
        super().__init__(self._reply)

    @property
    def reply(self) -> str:
        """The reply given to the constructor."""
        return self._reply


@dataclass(slots=True, eq=False)
class Transaction:
    """One mail transaction up to its content. Errors are counted; rejected recipients are passed on by `over`.

    Addresses come without angle brackets, parameters as in SMTP (`NOTIFY=NEVER`).
    """

    server: SocketServer
    recipe: RecipientChecks
    id: str = ""
    begun: Envelope | None = None
    """Sender and parameters of MAIL FROM; None before `mail`."""
    size: int = 0
    """The declared SIZE, in octets, or 0."""
    recipients: list[Recipient] = field(default_factory=list)
    """The accepted recipients."""
    message_id: str = ""
    _not_taken: dict[Recipient, RelayError] = field(default_factory=dict)

    @property
    def sender(self) -> str:
        """The sender's address, "" for the null reverse-path and before `mail`."""
        return self.begun.sender if self.begun is not None else ""

    def mail(self, sender: str, parameters: Iterable[str] = (), ignored: frozenset[str] = frozenset()) -> str:
        """Begins the transaction and returns the sender's address, "" for the null reverse-path.

        Parameters named in `ignored` may have any value. Raises BadParameter or MessageTooBig.
        """
        self.id = secrets.token_hex(6)
        with self.server.counted():
            smtputf8, size, limit = False, 0, self.server.settings.max_message_size
            ret = envid = None
            address, given = _checked("FROM:", sender, parameters)
            for name, value in given.items():
                match name:
                    case "SIZE" if value and _SIZE.fullmatch(value):
                        size = int(value)
                        if size > limit:
                            raise MessageTooBig(f"SIZE={value}, the limit is {limit} octets")
                    case "BODY" if value and value.upper() in ("7BIT", "8BITMIME"):
                        pass  # the next transaction declares what the message needs
                    case "SMTPUTF8" if value is None:
                        smtputf8 = True
                    case "RET" if value and value.upper() in ("FULL", "HDRS"):
                        ret = value.upper()
                    case "ENVID" if value and len(value) <= 100 and _XTEXT.fullmatch(value):
                        envid = value
                    case _ if name in ignored:
                        pass
                    case _:
                        raise BadParameter(555, "5.5.4", f"MAIL parameter not understood: {printable(name)}")
            if not address.isascii():
                _check_encoding(address, utf8=smtputf8)
        self.begun, self.size = Envelope(address, (), smtputf8=smtputf8, ret=ret, envid=envid), size
        return address

    def rcpt(self, recipient: str, parameters: Iterable[str] = (), *, utf8: bool = False) -> None:
        """Adds a recipient; `utf8` permits UTF-8 even without SMTPUTF8 in MAIL.

        Raises BadParameter, TooManyRecipients, or the recipe's error for this recipient.
        """
        if self.begun is None:
            raise BadParameter(503, "5.5.1", "Need MAIL command")
        utf8 = utf8 or self.begun.smtputf8
        with self.server.counted():
            # Rejected recipients count as well: each is recorded.
            if len(self.recipients) + len(self._not_taken) >= (limit := self.server.settings.max_recipients):
                raise TooManyRecipients(f"a mail has at most {limit}")
            notify = orcpt = None
            address, given = _checked("TO:", recipient, parameters)
            if not address:
                raise BadParameter(501, "5.1.3", "A recipient is needed")
            for name, value in given.items():
                match name:
                    case "NOTIFY" if value and _NOTIFY.fullmatch(value):
                        notify = value.upper()
                    case "ORCPT" if value and len(value) <= 500 and _is_orcpt(value, utf8=utf8):
                        orcpt = value
                    case _:
                        raise BadParameter(555, "5.5.4", f"RCPT parameter not understood: {printable(name)}")
            if not address.isascii():
                _check_encoding(address, utf8=utf8)
        taken = Recipient(address, notify=notify, orcpt=orcpt)
        try:
            self.recipe.check_recipient(self.begun.sender, address)
        except RelayError as error:
            self._not_taken[taken] = error
            raise
        self.recipients.append(taken)

    def complete(
        self, content: bytes, *, origin: Origin, each_answered: bool, trace: bytes = b"",
        absent: Callable[[], float] = never_absent, confirmed: bool = True,
    ) -> Mail:  # fmt: skip
        """The mail with this content for the accepted recipients; arguments as in Mail."""
        if self.begun is None:
            raise ValueError("a mail without a sender")
        self.message_id = mime.message_id_hash(content)
        # A milter hears of sendmail(1)'s recipients in UTF-8 without SMTPUTF8, and the next hop would refuse them.
        smtputf8 = self.begun.smtputf8 or not all(each.address.isascii() for each in self.recipients)
        envelope = replace(self.begun, recipients=tuple(self.recipients), smtputf8=smtputf8)
        return Mail(
            envelope, content, self.id, trace, origin, each_answered,
            self.server.listener, self.message_id, absent, confirmed,
        )  # fmt: skip

    def over(self, origin: Callable[[], Origin]) -> None:
        """Passes the rejected recipients to the recipe; must be called at the end of each transaction."""
        errors, self._not_taken = self._not_taken, {}
        if errors and self.begun is not None:
            mail = Mail(
                replace(self.begun, recipients=tuple(errors)), b"", self.id, origin=origin(),
                listener=self.server.listener, message_id=self.message_id,
            )  # fmt: skip
            self.recipe.not_taken(mail, {recipient.mailbox: error for recipient, error in errors.items()})


def path_of(keyword: str, arg: str | None) -> tuple[str, list[str]]:
    """The address and the parameters of `FROM:<address> [parameters]`, where `keyword` is `FROM:`; or `TO:`.

    Raises BadParameter.
    """
    if not arg or arg[: len(keyword)].upper() != keyword:
        raise _bad_syntax(keyword)
    match = _PATH.match(arg[len(keyword) :].strip())
    if match is None:
        raise _bad_syntax(keyword)
    return match[1], (match[2] or "").split()


def _is_orcpt(value: str, *, utf8: bool) -> bool:
    return bool(_ORCPT.fullmatch(value) or (utf8 and _UTF8_ORCPT.fullmatch(value)))


def printable(text: str) -> str:
    """At most 100 characters of client text, safe in a reply, a log line or a comment of a header field."""
    return _NOT_SHOWN.sub("?", text)[:100]


def _checked(keyword: str, address: str, words: Iterable[str]) -> tuple[str, dict[str, str | None]]:
    """Address and parameters (names in upper case, None without a value). Raises BadParameter."""
    if not _ADDRESS.fullmatch(address):
        raise _bad_syntax(keyword)
    if len(address) > MAX_PATH:
        raise BadParameter(501, "5.1.3", "Path too long")
    address = _SOURCE_ROUTE.sub("", address)
    if address and address.lower() != "postmaster" and not MAILBOX.fullmatch(address):
        raise BadParameter(553, "5.1.3", "The address needs a domain")
    parameters: dict[str, str | None] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if (equals and not value) or name.upper() in parameters:
            raise _bad_syntax(keyword)
        parameters[name.upper()] = value if equals else None
    return address, parameters


def _bad_syntax(keyword: str) -> BadParameter:
    return BadParameter(501, "5.5.4", f"Syntax: {keyword}<address> [parameters]")


def _check_encoding(address: str, *, utf8: bool) -> None:
    try:
        address.encode("utf-8" if utf8 else "ascii")
    except UnicodeEncodeError as error:
        raise BadParameter(553, "5.6.7", "The address needs SMTPUTF8, in valid UTF-8") from error
