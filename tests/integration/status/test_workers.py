"""With several workers one address tells the sums over all of them, and no count is lost with one that is killed.
Standard: what is counted only grows, whichever worker answers.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from relay.config import TCPAddress
from relay.kme import DevelopmentKMEs
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site
from tests.testlib.status_numbers import StatusNumbers, numbers, with_status
from tests.testlib.submit import submit
from tests.testlib.workers import how_often, numbered, pids, until, workers


@pytest.fixture(name="site")
def _site(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> Site:
    """No key is drawn ahead of need: a worker that is frozen meanwhile would lock the others out of the store."""
    site = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
        kme_settings="prefetch = false",
    )  # fmt: skip
    return with_status(site)


async def until_it_says(address: TCPAddress, number: float, name: str, **labels: str) -> StatusNumbers:
    """What is told may be a moment old; what is counted never goes back meanwhile, nor beyond the number."""
    told = 0.0
    async with asyncio.timeout(30):
        while (found := await numbers(address)).sum(name, **labels) != number:
            assert not name.endswith("_total") or told <= found.sum(name, **labels) < number
            told = found.sum(name, **labels)
            await asyncio.sleep(0.05)
    return found


async def test_the_sums_of_all_workers_stay_when_one_is_killed_and_another_takes_its_place(
    site: Site, sink: Sink
) -> None:
    async with workers(site, 2) as relay:
        outgoing, status = relay.addresses["outgoing"], relay.addresses["status"]
        sent = 0

        async def send(of_each: int) -> None:
            """Sends `of_each` by each worker, while the other one is frozen."""
            nonlocal sent
            for worker in (1, 2):
                other = pids(relay)[3 - worker]
                os.kill(other, signal.SIGSTOP)
                try:
                    for _ in range(of_each):
                        assert (await submit(outgoing, numbered(sent := sent + 1))).code == 250
                finally:
                    os.kill(other, signal.SIGCONT)

        await send(5)
        await until_it_says(status, 2, "qumail_workers")
        found = await until_it_says(status, 10, "qumail_mails_total", outcome="delivered", level="aes", peer="bob")
        assert found.sum("qumail_keys_total", fate="used") == sent
        assert found.sum("qumail_step_seconds_count", step="all") == sent
        for times, killed in enumerate((2, 1), 1):
            started = len(await until(relay, "worker_started"))
            os.kill(pids(relay)[killed], signal.SIGKILL)
            await until(relay, "worker_ended", times)
            await until_it_says(status, sent, "qumail_mails_total")  # also while the other one serves alone
            await until(relay, "worker_started", started + 1)
            await until(relay, "relay_serves", started + 1)
            await send(3)
            await until_it_says(status, 2, "qumail_workers")
            found = await until_it_says(status, sent, "qumail_mails_total")
            assert found.sum("qumail_step_seconds_count", step="all") == sent
        assert len(how_often(sink)) == sent == 22


async def test_started_anew_the_relay_forgets_nothing_and_is_asked_all_the_while(site: Site, sink: Sink) -> None:
    async with workers(site, 2) as relay:
        outgoing, status = relay.addresses["outgoing"], relay.addresses["status"]
        for number in range(4):
            assert (await submit(outgoing, numbered(number))).code == 250
        await until_it_says(status, 4, "qumail_mails_total")
        os.kill(relay.process.pid, signal.SIGUSR1)
        anew = asyncio.create_task(until(relay, "workers_started_anew"))
        while not anew.done():
            assert (await numbers(status)).sum("qumail_mails_total") == 4
        assert (await submit(outgoing, numbered(4))).code == 250
        await until_it_says(status, 2, "qumail_workers")
        await until_it_says(status, 5, "qumail_mails_total")
