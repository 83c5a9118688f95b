"""A program that forks with keys at hand, as servers with preloaded applications do: no two processes have one key.
Standard: POSIX fork; GS QKD 014, 5.3: a key is for one use.
"""

from __future__ import annotations

import json
import sys
from asyncio import create_subprocess_exec, subprocess
from pathlib import Path

from relay.kme import DevelopmentKMEs
from tests.integration.keys.test_undelivered import _kmes

FORKS = """
import asyncio, json, os, sys
from pathlib import Path
from relay.keys import *

state = Path(sys.argv[1])
km1, km2 = pair = get_optimized_km_clients(state)
ring_client = OptimizedKMClient(km1.url, ca=state / "ca.pem", certificate=state / "sae-2.pem", key=state / "sae-2.key")
peers = {"bob": PeerKeys("1", ("g",), Rotation(max_messages=100))}
ring = KeyRing("2", {"g": KMEGroup("g", [ring_client], Prefetch(8, 32))}, peers)

async def draw(number):
    drawn = [(await km1.request_enc_keys(1))[0].key_ID for _ in range(number)]
    drawn += [(await km2.request_enc_keys(2))[0].key_ID for _ in range(number)]
    return drawn + [(await ring.take("bob")).reference.key_ID]

async def before():
    asyncio.get_running_loop().call_later(60, os._exit, 7)
    for _ in range(12):
        [key] = await km1.request_enc_keys(1)
        await km2.request_dec_keys(2, [key.key_ID])
    used = await draw(6)
    while not (km1.accounts.totals()["in_pool"] and km2.accounts.totals()["in_pool"]):
        await asyncio.sleep(0.01)
    return used

used = [asyncio.run(before())]
for _ in range(2):
    reading, writing = os.pipe()
    if not os.fork():
        with open(writing, "w") as out:
            json.dump(asyncio.run(draw(4)), out)
        os._exit(0)
    os.close(writing)
    with open(reading) as said:
        used.append(json.load(said))
used.append(asyncio.run(draw(4)))
print(json.dumps(used))
"""


async def _used(kmes: DevelopmentKMEs) -> list[list[str]]:
    root = str(Path(__file__).parents[3])
    running = await create_subprocess_exec(
        *(sys.executable, "-c", FORKS, str(kmes.state_dir)),
        env={"PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await running.communicate()
    assert running.returncode == 0, err.decode()
    used: list[list[str]] = json.loads(out)
    return used


async def test_a_process_and_those_that_it_forks_have_no_key_in_common(tmp_path: Path) -> None:
    async with _kmes(tmp_path, drops_undelivered=False, max_sae_id_count=0) as kmes:
        used = await _used(kmes)
    assert [len(each) for each in used] == [13, 9, 9, 9]
    of_the_parent = set(used[0]) | set(used[3])
    assert not of_the_parent & set(used[1])
    assert not of_the_parent & set(used[2])
    assert not set(used[1]) & set(used[2])
