"""ClamAV's milter, rspamd and amavisd of Debian's packages, with the signature of the tests instead of a database.
Standard: clamav-milter.conf(5), rspamd's configuration, amavisd.conf-default; free ports, ended with the test.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from relay.config import TCPAddress
from tests.testlib.ports import free_addresses
from tests.testlib.scanner import SIGNATURE

CLAMAV = {name: shutil.which(name) for name in ("clamd", "clamav-milter")}
RSPAMD = shutil.which("rspamd")
requires_rspamd = pytest.mark.skipif(RSPAMD is None, reason="rspamd is not installed (Debian: rspamd)")
AMAVISD = shutil.which("amavisd") or shutil.which("amavisd-new")
requires_amavisd = pytest.mark.skipif(AMAVISD is None, reason="amavisd-new is not installed (Debian: amavisd-new)")
requires_clamav = pytest.mark.skipif(
    None in CLAMAV.values(), reason="ClamAV is not installed (Debian: clamav-daemon, clamav-milter)"
)


@asynccontextmanager
async def amavisd(back: TCPAddress) -> AsyncIterator[TCPAddress]:
    """amavisd, which hands mail back at `back`, and has a program that finds the signature of the tests for a scanner."""
    [address] = free_addresses(1)
    directory = Path(tempfile.mkdtemp(prefix="amavisd-"))
    try:
        directory.chmod(0o755)  # it gives up root's rights; pytest's directories are root's alone
        (directory / "home").mkdir()
        shutil.chown(directory / "home", "nobody")
        (directory / "scan").write_text(
            f"#!/bin/sh\ngrep -rqF '{SIGNATURE.decode()}' \"$1\" || exit 0\necho Own.Signature\nexit 1\n"
        )
        (directory / "scan").chmod(0o755)
        (directory / "conf").write_text(
            f"$MYHOME = $TEMPBASE = '{directory}/home'; $enable_db = 0; $pid_file = undef; $lock_file = undef;\n"
            "$daemon_user = 'nobody'; $daemon_group = 'nogroup'; $max_servers = 1; $do_syslog = 0; $log_level = 0;\n"
            "$mydomain = 'alice.example'; $myhostname = 'mail.alice.example'; @local_domains_maps = (['.']);\n"
            f"$inet_socket_bind = '{address.host}'; $inet_socket_port = {address.port};\n"
            f"$notify_method = $forward_method = 'smtp:[{back.host}]:{back.port}';\n"
            "$final_virus_destiny = D_REJECT; $virus_quarantine_to = $QUARANTINEDIR = $virus_admin = undef;\n"
            "@bypass_spam_checks_maps = @bypass_banned_checks_maps = @bypass_header_checks_maps = (1); @decoders = ();\n"
            f"@av_scanners = (['own', '{directory}/scan', '{{}}', [0], [1], qr/^(Own\\S+)/m]);\n1;\n"
        )
        async with _listening(address, str(AMAVISD), "-c", f"{directory}/conf", "foreground"):
            yield address
    finally:
        shutil.rmtree(directory)


@asynccontextmanager
async def clamav(directory: Path) -> AsyncIterator[TCPAddress]:
    """ClamAV's milter with the signature of the tests alone, as deploy/SCANNERS.md has it refuse."""
    daemon, milter = free_addresses(2)
    (directory / "signatures").mkdir()
    (directory / "signatures" / "own.ndb").write_text(f"Own.Signature:0:*:{SIGNATURE.hex()}\n")
    texts = {
        "clamd": f"Foreground yes\nDatabaseDirectory {directory}/signatures\nTCPSocket {daemon.port}\n"
        f"TCPAddr {daemon.host}\nTemporaryDirectory {directory}\n",
        "clamav-milter": f"Foreground yes\nMilterSocket inet:{milter.port}@{milter.host}\nOnInfected Reject\n"
        f"ClamdSocket tcp:{daemon}\nTemporaryDirectory {directory}\n",
    }
    async with AsyncExitStack() as stack:
        for (name, text), address in zip(texts.items(), (daemon, milter), strict=True):
            (directory / f"{name}.conf").write_text(text)
            words = (str(CLAMAV[name]), f"--config-file={directory}/{name}.conf")
            await stack.enter_async_context(_listening(address, *words))
        yield milter


@asynccontextmanager
async def rspamd(directory: Path) -> AsyncIterator[TCPAddress]:
    """rspamd as a milter, with a rule for the signature of the tests alone."""
    [milter] = free_addresses(1)
    (directory / "own.lua").write_text(
        "rspamd_config:register_symbol({name = 'OWN_SIGNATURE', type = 'prefilter', callback = function(task)\n"
        f"  if tostring(task:get_content()):find('{SIGNATURE.decode()}', 1, true) then\n"
        "    task:set_pre_result('reject', 'A virus')\n  end\nend})\n"
    )
    (directory / "domains").write_text("example\n")  # its own list of 10,000 takes it a minute to compile
    (directory / "rspamd.conf").write_text(
        f'options {{ pidfile = "{directory}/pid"; temp_dir = "{directory}"; control_socket = "{directory}/control"; '
        f'filters = ""; url_tld = "{directory}/domains"; disable_hyperscan = true; '
        'dns { nameserver = ["127.0.0.1"]; } }\n'
        'logging { type = "console"; level = "error"; }\nactions { reject = 15; }\n'
        f'worker "rspamd_proxy" {{ bind_socket = "{milter}"; milter = yes; count = 1; timeout = 60s; '
        'upstream "local" { default = yes; self_scan = yes; } }\n'
        f'lua = "{directory}/own.lua"\n'
    )
    words = (str(RSPAMD), "--no-fork", "--insecure", "--config", f"{directory}/rspamd.conf")
    async with _listening(milter, *words):
        yield milter


@asynccontextmanager
async def _listening(address: TCPAddress, *words: str) -> AsyncIterator[None]:
    """A program that runs, from when it listens."""
    process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.DEVNULL)
    try:
        async with asyncio.timeout(60):
            while process.returncode is None:
                with suppress(OSError):
                    _, writer = await asyncio.open_connection(*address)
                    writer.close()
                    break
                await asyncio.sleep(0.05)
        assert process.returncode is None
        yield
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
