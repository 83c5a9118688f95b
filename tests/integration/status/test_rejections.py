"""What a listener turns away before there is a mail is counted by direction, listener and reason, for every sender.
Standard: nothing that a stranger writes becomes a label.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest

from relay.kme import DevelopmentKMEs
from relay.process import app
from relay.status import exposition
from tests.testlib import mails
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site
from tests.testlib.status_numbers import numbers, with_status
from tests.testlib.submit import submit

NAME = "qumail_rejections_total"


async def test_what_is_turned_away_before_the_recipe_is_counted(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposition, "SHARE", math.inf)  # what is told is never a moment old
    policies = {
        "default.toml": 'levels = ["aes"]\n',
        "x.example.toml": 'peer = "bob"\nlevels = ["pqc"]\notherwise = "refuse"\n',
        "y.example.toml": 'peer = "bob"\nlevels = ["pqc"]\n',
    }
    alice = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
        incoming=sink.address, policies=policies, settings='max_message_size = "2 KiB"\nlmtp = "127.0.0.1:0"\n',
    )  # fmt: skip
    async with app.running(with_status(alice).config) as addresses:
        outgoing, incoming = addresses["outgoing"], addresses["incoming"]
        assert (await submit(outgoing, mails.plain(), recipients=["stranger@x.example"])).code == 550
        assert (await submit(outgoing, mails.plain(), recipients=["stranger@y.example"])).code == 451
        assert (await submit(incoming, mails.plain() + b"x" * 3000)).code == 552
        assert (await submit(incoming, mails.plain(), options=["SIZE=5000"])).code == 552
        found = await numbers(addresses["status"])
        out = {"direction": "outgoing", "listener": "smtp"}
        mails_of = partial(found.sum, "qumail_mails_total", **out, level="none")
        assert mails_of(outcome="refused") == mails_of(outcome="held") == 1, "at RCPT, by policy, is a mail's fate"
        assert found.sum(NAME, direction="incoming", listener="smtp", reason="MessageTooBig") == 2
        assert found.sum(NAME) == 2
        assert found.sum("qumail_mails_total") == 2
