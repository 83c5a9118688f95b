"""A Postfix of its own for a benchmark, beside the one of this host: one queue, and a port for each way in.
Standard: what deploy/postfix recommends, on free ports, all files in one directory that is gone afterwards.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.bench.processes import START_S
from tests.bench.result import BenchmarkFailed

_MAIN_CF = """\
compatibility_level = 3.6
queue_directory = {directory}/queue
data_directory = {directory}/data
maillog_file = {directory}/log
maillog_file_prefixes = {directory}
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mydestination =
alias_maps =
local_recipient_maps =
mynetworks = 127.0.0.0/8
notify_classes =
smtpd_peername_lookup = no
message_size_limit = 75000000
mailbox_size_limit = 0
virtual_mailbox_limit = 0
default_transport = smtp:[127.0.0.1]:{sink}
milter_default_action = tempfail
qumail_destination_concurrency_negative_feedback = 0
qumail_destination_concurrency_failed_cohort_limit = 0
"""

_MASTER_CF = """\
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
qumail unix - - n - - lmtp -o lmtp_line_length_limit=0 -o lmtp_send_xforward_command=yes
"""


def free_ports(number: int) -> list[int]:
    """Ports of loopback that nobody listens at now, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def bench_postfix(ways_in: Mapping[int, str], sink: int) -> Iterator[None]:
    """Runs while the context lasts; all its mail goes to the port `sink`.

    `ways_in` has for each port the options of the smtpd there (master(5): `-o name=value`). Raises BenchmarkFailed
    where Postfix is not here, or this is not root, as whom alone it can be started.
    """
    if os.geteuid() != 0 or shutil.which("postfix") is None:
        raise BenchmarkFailed("this needs Postfix (Debian: apt-get install postfix), and root, who alone can start it")
    directory = Path(tempfile.mkdtemp(prefix="qumail-relay-bench-postfix-"))
    try:
        directory.chmod(0o755)  # Postfix's own user must get in
        for name in ("etc", "queue", "data"):
            (directory / name).mkdir()
        shutil.chown(directory / "data", "postfix")
        services = "".join(f"127.0.0.1:{port} inet n - n - - smtpd {options}\n" for port, options in ways_in.items())
        (directory / "etc" / "main.cf").write_text(_MAIN_CF.format(directory=directory, sink=sink))
        (directory / "etc" / "master.cf").write_text(_MASTER_CF + services)
        _postfix(directory, "start")
        yield
    finally:
        _stop(directory)
        shutil.rmtree(directory)


def _postfix(directory: Path, what: str) -> None:
    command = ["postfix", "-c", str(directory / "etc"), what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkFailed(f"`postfix {what}`: {done.stderr.strip()}")


def _stop(directory: Path) -> None:
    """Ends all its processes, and waits until the last is gone."""
    if not (directory / "queue" / "pid" / "master.pid").exists():
        return
    _postfix(directory, "abort")
    until = time.monotonic() + START_S
    while _runs(directory) and time.monotonic() < until:
        time.sleep(0.05)


def _runs(directory: Path) -> bool:
    command = ["postfix", "-c", str(directory / "etc"), "status"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
