"""Fresh keys refused by what stands before a KME: mail is held with what was said, and leaves once the fault is over.
Standard: ETSI GS QKD 014 V1.1.1, 5.3 and 6.5; tests/testlib/refusals.py has the forms.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest
from structlog.testing import LogCapture

from relay.keys import build
from relay.keys.health import BreakerRules
from relay.kme import DevelopmentKMEs
from relay.process import app
from tests.testlib import mails
from tests.testlib.refusals import PASSING, REFUSALS
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site
from tests.testlib.submit import submit


@pytest.mark.in_process
async def test_mail_for_which_fresh_keys_are_refused_in_any_form_is_held_with_what_was_said_and_leaves_afterwards(
    tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink, log: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "BreakerRules", partial(BreakerRules, misconfigured=0.1))
    alice = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address,
        kme_settings="prefetch = false\none_batch_at_a_time = false",
    )  # fmt: skip
    async with app.running(alice.config) as addresses:
        for number, (name, refusal) in enumerate((REFUSALS | PASSING).items(), 1):
            log.entries.clear()
            headers = tuple(each for each in refusal.headers if each[0] != "Retry-After")
            kmes.km1.misbehave("enc_keys", "http", times=None, code=refusal.code, body=refusal.body, headers=headers)
            assert (await submit(addresses["outgoing"], mails.plain(name))).code == 451, name
            [cause] = [each["cause"] for each in log.entries if each["event"] == "mail_not_accepted"]
            assert refusal.said in cause, name
            assert f"HTTP {refusal.code}" in cause or refusal.code == 200, name
            kmes.km1.behave()
            async with asyncio.timeout(20):
                while (await submit(addresses["outgoing"], mails.plain(name))).code != 250:
                    await asyncio.sleep(0.02)
            assert len(wire.got) == number, name
