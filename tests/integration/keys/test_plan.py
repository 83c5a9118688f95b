"""What `keys plan` says of a day's mail is what sealing such mails draws from the KME, at each level.
Standard: the development KMEs remember what they were asked for; sizes, padding, rotation and key sizes vary.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from relay.kme import DevelopmentKMEs, LinkSettings
from relay.mail import Envelope, Mail, Recipient
from relay.process import assembly
from tests.testlib import mails
from tests.testlib.identities import Identities
from tests.testlib.relay_command import run
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site

SENDER, RECIPIENT = "first.lastname@alice.example", "first.lastname@bob.example"
ROTATION = "key_max_messages = 3\nkey_max_age = 86400\n"


async def plan(*arguments: str | Path) -> dict[str, Any]:
    status, err, out = await run("keys", "plan", *arguments, "--json")
    assert (status, err) == (0, "")
    found: dict[str, Any] = json.loads(out)
    return found


async def seal(site: Site, number: int, size: int) -> None:
    """Seals `number` different mails of this size, and sends none."""
    async with assembly.parts(site.config, prefetch=False) as parts:
        for each in range(number):
            message = mails.plain(f"Number {each:04}")
            message += b"x" * (size - len(message) - 2) + b"\r\n"
            made = await parts.sealer.seal(Mail(Envelope(SENDER, (Recipient(RECIPIENT),)), message))
            assert made.failures == {}


@pytest.mark.parametrize(
    ("level", "size", "settings", "longest"),
    [
        ("otp", 75 * 1024, "", 65_536),
        ("otp", 75 * 1024, "", 256),
        ("otp", 400, "", 65_536),
        ("otp", 9_999, '[otp]\npadding = "none"\n', 2_048),
        ("aes", 75 * 1024, "", 65_536),
        ("aes", 75 * 1024, ROTATION, 65_536),
        ("pqc+aes", 75 * 1024, ROTATION, 65_536),
        ("rsa+aes", 2_000, "", 256),
    ],
)
async def test_what_the_plan_says_is_what_sealing_draws(
    tmp_path: Path, sink: Sink, identities: Identities, level: str, size: int, settings: str, longest: int
) -> None:
    link = LinkSettings(key_rate=0, stored_key_limit=100_000, max_key_size=longest)
    async with DevelopmentKMEs(state_dir=tmp_path / "kme", host="127.0.0.1", ports=(0, 0), link=link) as kmes:
        site = make_site(
            tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
            policies={"bob.example.toml": f'levels = ["{level}"]\n'}, identities=identities,
        )  # fmt: skip
        with site.config_file.open("a") as file:
            file.write(settings)
        of_a_day = ("--mails", "7", "--size", str(size), "--level", level)
        said = await plan("--config", site.config_file, *of_a_day)
        assert kmes.km1.got("enc_keys") == [], "it takes none"
        assert (said["kme"], said["protection"]) == ("kme", level)
        before = kmes.link.bits
        await seal(site, 7, size)
        assert said["bits"] == before - kmes.link.bits
        assert said["keys"] == sum(each.content["number"] for each in kmes.km1.got("enc_keys"))
        assert said["stock_keys"] == 100_000
        assert said["stock_mails"] == before // (said["keys_per_mail"] * said["key_bits"]) * said["mails_per_key"]


async def test_the_document_shows_what_the_command_says(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "deploy" / "CONCEPTS.md").read_text()
    command, shown = re.findall(r"^```(?:sh)?\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)[1:]
    _, _, out = await run(*shlex.split(command)[1:], "--config", tmp_path / "relay.toml")
    assert out.decode() == shown


async def test_it_works_before_there_is_a_site_and_fits_a_terminal(tmp_path: Path) -> None:
    nothing = ("--config", tmp_path / "relay.toml")
    of_a_day = ("--mails", "2000", "--size", "75K")
    status, err, out = await run("keys", "plan", *nothing, *of_a_day, "--level", "otp", "--stock", "1000000")
    assert (status, err) == (0, "")
    text = out.decode()
    assert "9,728,000 keys, 2.49 Gbit" in text
    assert "205 mails" in text
    assert max(map(len, text.splitlines())) <= 80
    longer = await plan(*nothing, *of_a_day, "--level", "otp", "--key-size", "65536")
    assert longer["bits"] * 1.9 < 2_490_368_000, "long keys cost half of what short ones do"
    _, _, out = await run("keys", "plan", *nothing, *of_a_day, "--level", "rsa")
    assert out == b"level rsa without a quantum key takes none\n"


async def test_it_says_where_the_kme_does_not_answer(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> None:
    site = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
        kme_settings="timeout = 1\n",
    )  # fmt: skip
    await kmes.km1.stop()
    said = await plan("--config", site.config_file, "--mails", "10", "--size", "75K", "--level", "otp")
    assert (said["kme"], said["key_bits"]) == ("kme, which does not answer", 256)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--size", "75 elephants"], 2, "write a size"),
        (["--size", "1K", "--peer", "carol"], 1, "carol: no such peer"),
        (["--size", "1K", "--mails", "0"], 2, "mails"),
    ],
)
async def test_what_makes_no_sense_is_said(tmp_path: Path, arguments: list[str], status: int, said: str) -> None:
    nothing = ("--config", tmp_path / "relay.toml")
    ended, err, _ = await run("keys", "plan", *nothing, "--mails", "1", "--level", "aes", *arguments)
    assert ended == status
    assert said in err
