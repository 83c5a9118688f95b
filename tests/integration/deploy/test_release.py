"""The files of a release: the wheel alone carries a mail, and deploy/release makes nothing of what is not committed.
Standard: PEP 427. That the package carries one is in test_package.py, the image in tests/system/containers.py.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.testlib.sink import Sink
from tests.testlib.sites import Site, read_when_ready
from tests.testlib.submit import submit

ROOT = Path(__file__).parents[3]
RELAY_TOML = """\
[site]
name = "alice"
domains = ["alice.example"]
sae_id = "sae-alice"

[outgoing]
listen = "127.0.0.1:0"
next_hop = "{next_hop}"

[policies]
directory = "policies"

[store]
database = "relay.db"
secret = "site.secret"
"""


async def test_the_wheel_alone_carries_a_mail(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    said = [sys.executable, "-P", "-c", "import relay; print(relay.__file__)"]
    where = subprocess.run(said, cwd="/", env=environment, check=True, capture_output=True, text=True).stdout
    assert where.startswith(str(tmp_path / "site"))
    async with Sink() as sink:
        site = Site(tmp_path / "alice")
        site.directory.mkdir()
        site.config_file.write_text(RELAY_TOML.format(next_hop=sink.address))
        site.write_policies({"default.toml": 'levels = ["plaintext"]\n'})
        ready, log = site.directory / "ready", site.directory / "relay.log"
        with log.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "relay", "serve", "--config", site.config_file, "--ready-file", ready,
                cwd=site.directory, stderr=file, env=environment,
            )  # fmt: skip
        try:
            addresses = await read_when_ready(process, ready, log)
            reply = await submit(addresses["outgoing"], b"Subject: x\r\n\r\nhello\r\n", recipients=["x@other.example"])
            assert reply.code == 250, log.read_text()
            assert b"hello" in sink.got[0].message
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


def test_a_release_is_made_of_a_commit_alone(tmp_path: Path) -> None:
    """Of a tree without git, or with an edit, nothing is made."""
    (tmp_path / "deploy").mkdir()
    (tmp_path / "made").mkdir()
    for name in ("release", "environment"):
        (tmp_path / "deploy" / name).write_bytes((ROOT / "deploy" / name).read_bytes())
    for words in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    done = subprocess.run(["sh", tmp_path / "deploy/release", tmp_path / "made"], capture_output=True, text=True)
    assert (done.returncode, list((tmp_path / "made").iterdir())) == (1, [])
    assert done.stderr == "RELEASE FAILED: something is not committed\n"
