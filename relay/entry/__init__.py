"""The listeners, one folder or file each; neither they nor the relay depend on any of them.
Standard: 250 is said only for a recipient whose mail the next hop has accepted (RFC 5321 6.1, RFC 2033 4.2).

config/listeners.py lists them. A listener may be removed, unless relay.toml has settings for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from relay.counting.board import Board
from relay.errors import RelayError
from relay.mail import Mail, Outcomes

if TYPE_CHECKING:  # a command that needs one folder alone does not load all of the relay
    from relay.config import Config, DirectionSettings, TCPAddress
    from relay.entry.budget import Budget
    from relay.entry.listening import Present, Sockets, Where
    from relay.entry.outgoing_router import OutgoingRouter
    from relay.files.stamps import Stamps
    from relay.incoming import Incoming
    from relay.journey.opening.original import Originals
    from relay.outcome.tally import Tally
    from relay.store.rate_limits import RateLimits
    from relay.store.secret import SiteSecret


class RecipientChecks(Protocol):
    """outgoing.py or incoming.py, before there is a mail."""

    def check_recipient(self, sender: str, recipient: str) -> None:
        """Raises TryLater or Refuse, which becomes the reply for this recipient."""

    def not_taken(self, mail: Mail, errors: Mapping[str, RelayError]) -> None:
        """Called at the end of a transaction in which `check_recipient` raised these `errors`, by mailbox.

        If no content was received, the mail's message is empty.
        """


class Recipe(RecipientChecks, Protocol):
    """outgoing.py or incoming.py, as SMTP sees them."""

    async def process(self, mail: Mail) -> Outcomes:
        """Delivers the mail; returns an outcome for each recipient, None if the next hop accepted it.

        Raises TryLater or Refuse for all recipients.
        """

    def client_answered(self, mail: Mail) -> None:
        """The client got the reply: it will retry only the recipients that the reply holds."""

    async def client_gone(self, mail: Mail, outcomes: Outcomes) -> None:
        """The client was gone before it could get `outcomes`: a retry must not repeat what was accepted.

        For a `confirmed` mail, either this or `client_answered` is called, once.
        """


@dataclass(frozen=True, slots=True)
class Inside:
    """The parts of the relay that a listener may use."""

    config: Config
    outgoing: OutgoingRouter | None
    incoming: Incoming | None
    originals: Originals
    rate_limits: RateLimits
    secret: SiteSecret
    budget: Budget
    sockets: Sockets
    tally: Tally
    """For incoming mail."""
    board: Board
    present: Present

    @property
    def directions(self) -> Iterator[tuple[str, DirectionSettings, OutgoingRouter | Incoming]]:
        """The configured directions: name, settings and recipe."""
        if self.config.outgoing is not None and self.outgoing is not None:
            yield "outgoing", self.config.outgoing, self.outgoing
        if self.config.incoming is not None and self.incoming is not None:
            yield "incoming", self.config.incoming, self.incoming


class Listener(Protocol):
    """A listener that is ready; it accepts mail between `start` and `stop`."""

    async def start(self) -> dict[str, TCPAddress]:
        """Starts to accept mail; returns the bound TCP addresses, by name. Raises ConfigError."""

    async def retire(self) -> None:
        """Stops accepting, for other processes at the same sockets; returns when all its connections have ended."""

    async def stop(self) -> None:
        """Accepts no new mail, gives mails in flight a grace period, and closes the rest."""

    @property
    def reloadable(self) -> Sequence[Reloadable]:
        """The parts that can be reloaded from files while it serves."""


class Reloadable(Protocol):
    """Something read from files; `read_at` are their stamps just before reading."""

    read_at: Stamps

    def stamps(self) -> Stamps:
        """The current stamps."""

    def reload(self) -> None:
        """Reloads the files; if they cannot be used, logs why and changes nothing."""


class ListenerModule(Protocol):
    """The interface of a listener's module: `listener.py` in its folder, or its only file."""

    def listens_on(self, config: Config) -> dict[str, Where]:
        """The configured addresses, by setting (`outgoing.listen`)."""

    def listener(self, inside: Inside) -> AbstractAsyncContextManager[Listener]:
        """The listener, ready; its resources are closed with the context. Raises ConfigError and StoreUnavailable."""

    def read_files(self, config: Config) -> None:
        """Reads the files that a start reads, and keeps nothing. Raises ConfigError."""

    def states(self, config: Config) -> AsyncIterator[tuple[str, str, tuple[str, ...]]]:
        """For `check`: each item checked, its state and its faults."""
