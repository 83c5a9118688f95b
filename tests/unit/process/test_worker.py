"""What a worker says to the process that starts workers arrives there, however much it is, and its end does."""

from __future__ import annotations

import socket

from relay.process.worker import Worker


async def test_a_word_of_any_length_arrives_and_then_the_end() -> None:
    there, here = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    there.setblocking(False)
    with there:
        with here:
            worker = Worker(1, 2, {}, -1, here.fileno(), -1, -1, -1)
            report = {"pools": [{"peer": f"peer {number}", "used": number} for number in range(30_000)]}
            worker.send("keys", report)
            assert await Worker.receive(there) == ("keys", report)
            worker.send("serves", {})
            assert await Worker.receive(there) == ("serves", {})
        assert await Worker.receive(there) is None


def test_what_nobody_listens_to_is_lost() -> None:
    there, here = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    there.close()
    with here:
        Worker(1, 2, {}, -1, here.fileno(), -1, -1, -1).send("keys", {})
