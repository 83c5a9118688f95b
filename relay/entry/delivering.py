"""What becomes of a mail whose content has come: carried to its end in a task that outlives the connection.
Standard: RFC 5321 6.1 (a mail that was taken is not lost), RFC 1047 (a client that heard no answer sends again).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from relay.entry import Recipe
from relay.entry.budget import Share
from relay.entry.listening import SocketServer
from relay.errors import RelayError, TryLater
from relay.mail import Mail, Outcomes

log = structlog.get_logger(__name__)


def begin_delivery(
    server: SocketServer, recipe: Recipe, mail: Mail, share: Share, answer: Callable[[Outcomes], Awaitable[bool]]
) -> asyncio.Task[None]:
    """Starts the whole journey of a mail that is `confirmed`, its answer included, and returns the task.

    `answer` says the outcomes, one for each recipient, and returns whether the client was there to hear them. It may
    raise ConnectionError where the client was not. `share` is what the mail holds; it is given back at the end. The
    caller waits with `asyncio.shield`: nothing that the client does stops the mail.
    """
    delivery = server.run(_deliver(recipe, mail, answer))
    delivery.add_done_callback(lambda _: share.reduce())
    return delivery


async def _deliver(recipe: Recipe, mail: Mail, answer: Callable[[Outcomes], Awaitable[bool]]) -> None:
    # For this task, which has no other mail: what is known of it since its content has come.
    known = {"message_id": mail.message_id} | ({"queue_id": mail.origin.ident} if mail.origin.ident else {})
    structlog.contextvars.bind_contextvars(**known)
    done = heard = False
    outcomes: Outcomes = ()
    try:
        try:
            outcomes = await recipe.process(mail)
            done = True
        except Exception as error:  # noqa: BLE001 - unknown errors hold mail
            failure = error if isinstance(error, RelayError) else _unforeseen(error)
            outcomes = (failure,) * len(mail.envelope.recipients)
        try:
            heard = await answer(outcomes)
        except ConnectionError:
            heard = False
    finally:
        # Who is cancelled before the answer is known to have been heard has not heard it.
        await _tell_whether_heard(recipe, mail, outcomes, heard=heard, done=done)


async def _tell_whether_heard(recipe: Recipe, mail: Mail, outcomes: Outcomes, *, heard: bool, done: bool) -> None:
    """Whether the client knows what became of the mail: what the recipe has `done`."""
    if not outcomes:
        return  # cancelled before there were any: nothing is to be heard of it
    if heard and done:
        recipe.heard(mail)
        return
    if not heard:
        log.warning("client_gone_before_the_answer", recipients=len(mail.envelope.recipients))
    try:
        await recipe.client_gone(mail, outcomes)
    except Exception as error:  # noqa: BLE001 - the mail has left
        log.error("delivery_not_remembered", cause=str(error), kind=type(error).__name__)


def _unforeseen(error: Exception) -> TryLater:
    """What we did not foresee holds the mail."""
    log.error("delivery_failed", cause=f"{type(error).__name__}: {error}", exc_info=error)
    return TryLater("unforeseen")
