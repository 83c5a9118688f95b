"""Mail that is built against rules which look inside neither holds the event loop nor costs more than twice a plain mail.
Standard: processor time, three times in a row; `python -m tests.system.slow_mail` measures more of it, and larger mail.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from functools import partial

import pytest
import pytest_asyncio
import structlog

from relay.config import TCPAddress
from relay.process import app
from tests.system.slow_mail import KINDS, SMALL, alike, new, send, site
from tests.testlib.exact_sink import ExactSink
from tests.testlib.hostile import MAKERS
from tests.testlib.long import sized
from tests.testlib.loop_clock import TIMES, LoopClock, loop_clock, slow
from tests.testlib.speed import slowness
from tests.testlib.submit import submit

pytestmark = pytest.mark.asyncio(loop_scope="module")

FACTOR, SLACK_S = 2.0, 0.01
AT_ONCE = 20


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def address(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TCPAddress]:
    """Where mail goes into a relay whose few rules ask for everything."""
    async with (
        ExactSink() as sink,
        site(tmp_path_factory.mktemp("site"), sink.address) as made,
        app.running(made.config) as addresses,
    ):
        yield addresses["outgoing"]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield


async def cost(clock: LoopClock, address: TCPAddress, message: bytes) -> float:
    """Processor time that the relay takes for a mail, on the loop and in threads; the least of several times."""
    found = []
    for _ in range(TIMES):
        clock.reset()
        await submit(address, new(message))
        found.append(clock.held + clock.worked)
    return min(found)


@pytest.mark.parametrize("name", KINDS[:: sized(4, 1)])
async def test_no_kind_costs_more_than_twice_what_a_plain_mail_does(name: str, address: TCPAddress) -> None:
    message = MAKERS[name](SMALL)
    with loop_clock() as clock:
        for _ in range(TIMES):
            found, usual = await cost(clock, address, message), await cost(clock, address, alike(message))
            if found <= FACTOR * usual + SLACK_S * slowness():
                return
    pytest.fail(f"{found * 1000:.0f} ms, and {usual * 1000:.0f} ms for a plain mail")


async def test_many_at_once_do_not_hold_the_loop(address: TCPAddress) -> None:
    messages = [MAKERS[KINDS[number % len(KINDS)]](SMALL) for number in range(AT_ONCE)]
    with loop_clock() as clock:
        one = await slow(clock, "all at once", partial(send, address, messages), 5.0)
    assert one is None, str(one)
