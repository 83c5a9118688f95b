"""Where mail comes in: a folder or a file for each listener. They do not know each other; the relay knows none.
Standard: 250 is said only for a recipient whose mail the next hop has accepted (RFC 5321 6.1, RFC 2033 4.2).

config/listeners.py has their list. One that is taken away is missed only by a relay.toml that sets what it does.
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
    from relay.entry.homeward import Homeward
    from relay.entry.listening import Present, Sockets, Where
    from relay.files.stamps import Stamps
    from relay.incoming import Incoming
    from relay.journey.opening.original import Originals
    from relay.outcome.tally import Tally
    from relay.store.rate_limits import RateLimits
    from relay.store.secret import SiteSecret


class RecipientChecks(Protocol):
    """outgoing.py or incoming.py, before there is a mail."""

    def check_recipient(self, sender: str, recipient: str) -> None:
        """Raises the TryLater or Refuse that this recipient is to be answered with."""

    def not_taken(self, mail: Mail, errors: Mapping[str, RelayError]) -> None:
        """A transaction is over in which `check_recipient` raised these, by mailbox, for the mail's recipients.

        The mail is what is known of it: of one whose content did not come, no bytes.
        """


class Recipe(RecipientChecks, Protocol):
    """outgoing.py or incoming.py, as SMTP sees them."""

    async def process(self, mail: Mail) -> Outcomes:
        """Carries the mail to the next hop: one outcome for each recipient, None where it was accepted there.

        Raises TryLater or Refuse, which then holds for all recipients.
        """

    def client_answered(self, mail: Mail) -> None:
        """The client was there when it was answered: it asks again for those alone whom the answer has held."""

    async def client_gone(self, mail: Mail, outcomes: Outcomes) -> None:
        """The client was gone before it could hear `outcomes`: its retry must repeat nothing that was accepted.

        Of a mail that is `confirmed` this or `client_answered` is called, once.
        """


@dataclass(frozen=True, slots=True)
class Inside:
    """What a listener leads to, and what it may use there."""

    config: Config
    outgoing: Homeward | None
    incoming: Incoming | None
    originals: Originals
    rate_limits: RateLimits
    secret: SiteSecret
    budget: Budget
    sockets: Sockets
    tally: Tally
    """Of mail that arrives."""
    board: Board
    present: Present

    @property
    def directions(self) -> Iterator[tuple[str, DirectionSettings, Homeward | Incoming]]:
        """Each way through the relay that is set: its name, its settings and its recipe."""
        if self.config.outgoing is not None and self.outgoing is not None:
            yield "outgoing", self.config.outgoing, self.outgoing
        if self.config.incoming is not None and self.incoming is not None:
            yield "incoming", self.config.incoming, self.incoming


class Listener(Protocol):
    """One that was made ready; it takes mail between `start` and `stop`."""

    async def start(self) -> dict[str, TCPAddress]:
        """Takes mail from now on; gives its real TCP addresses, by name. Raises ConfigError."""

    async def retire(self) -> None:
        """Leaves new connections to other processes at the same sockets; returns when those there are have ended."""

    async def stop(self) -> None:
        """Takes no new mail, lets mails in flight end in some seconds, closes what is left."""

    @property
    def reloadable(self) -> Sequence[Reloadable]:
        """What was read from files and is read again while it serves."""


class Reloadable(Protocol):
    """Something that was read from files; `read_at` are their stamps just before that."""

    read_at: Stamps

    def stamps(self) -> Stamps:
        """Those of now."""

    def reload(self) -> None:
        """Takes the files as they are, or says in the log why they cannot be used, and leaves all as it was."""


class ListenerModule(Protocol):
    """What `listener.py` of each folder has, or the file of a listener that needs one file only."""

    def listens_on(self, config: Config) -> dict[str, Where]:
        """The addresses that its settings name, by setting (`outgoing.listen`)."""

    def listener(self, inside: Inside) -> AbstractAsyncContextManager[Listener]:
        """The listener, ready; whatever it needs ends with the context. Raises ConfigError and StoreUnavailable."""

    def states(self, config: Config) -> AsyncIterator[tuple[str, str, tuple[str, ...]]]:
        """For `check`: each item checked, its state and its faults."""
