"""Is the client of a connection still there? What the kernel knows of that, before the event loop has read it.
Standard: poll(2): POLLRDHUP, the other side sends no more, POLLHUP, nothing goes either way; tcp(7): TCP_INFO.
"""

from __future__ import annotations

import math
import select
import socket
import struct
from typing import Any

_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL
_LAST_DATA_RECEIVED = struct.Struct("=52xI")
"""Of struct tcp_info (linux/tcp.h): `tcpi_last_data_recv`, in milliseconds."""


def absent_s(connection: Any) -> float:
    """Returns for how many seconds the client may have been gone; infinite if it is unreachable, 0.0 if it is there.

    One that sends no more may wait for its answer, or may have gone when the last octets had come from it. `connection`
    is a TCP socket, or what an event loop gives in its place.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLRDHUP)
    events = sum(each for _, each in poll.poll(0))
    if not events:
        return 0.0
    if events & _GONE:
        return math.inf
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA_RECEIVED.size)
    [milliseconds] = _LAST_DATA_RECEIVED.unpack(info)
    return max(1, int(milliseconds)) / 1000
