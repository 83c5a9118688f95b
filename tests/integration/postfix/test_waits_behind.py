"""`check --postfix` says which mail waits in Postfix's queue behind the relay, and why, and leaves the relay's own holds out.
Standard: postqueue(1) -j; a real Postfix whose relayhost is dead.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from relay import postfix as checked
from relay.config import load_config
from relay.postfix import queue
from tests.testlib import postfix, reference
from tests.testlib.ports import free_addresses
from tests.testlib.postfix import requires_postfix
from tests.testlib.submit import submit

MESSAGE = b"From: ann@alice.example\r\nTo: ben@bob.example\r\n\r\nx\r\n"


@requires_postfix
@pytest.mark.parametrize("handed_on", [True, False], ids=["behind the relay", "held by the relay"])
async def test_mail_to_a_peer_that_waits_behind_the_relay_is_named_with_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handed_on: bool
) -> None:
    smtp, relay, back, dead = free_addresses(4)
    config = reference.written(tmp_path)
    config.write_text(config.read_text().replace("15024", str(relay.port)).replace("15026", str(back.port)))
    async with postfix.running(
        smtp=smtp, fragments=("outgoing-lmtp",), ports={15024: relay, 15026: back},
        settings={"relayhost": f"[127.0.0.1]:{dead.port}"},
    ) as server:  # fmt: skip
        reply = await submit(
            back if handed_on else smtp, MESSAGE, sender="ann@alice.example", recipients=["ben@bob.example"]
        )
        assert reply.code == 250
        reason = await server.deferred("ben@bob.example")
        assert [
            each.code
            for each in await queue.behind_the_relay((await checked.judge(server.config, load_config(config))).flow)
        ] == []
        monkeypatch.setattr(queue, "WAITS_S", 0.0)
        found = [
            each
            for each in (await checked.judge_all(server.config, load_config(config))).faults
            if each.code == "waits-behind"
        ]
        assert [each.what for each in found] == ([f"mail to bob.example waits: {reason}"] if handed_on else [])
        await server.command("postsuper", "-h", "ALL")
        [held] = await queue.behind_the_relay((await checked.judge(server.config, load_config(config))).flow)
        assert held.what == "mail to bob.example waits: it is on hold", "wherever it is: the relay does not see it"
        assert "postsuper -H ALL" in held.remedy
