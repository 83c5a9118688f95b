"""`qumail-relay audit`: what it proves, hands out and signs; the vectors, read by deploy/AUDIT.md alone as well.
Standard: deploy/AUDIT.md; exit status 0 fine, 1 something is wrong with the record, 2 usage.
"""

from __future__ import annotations

import asyncio
import base64
import csv
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from relay.audit import checkpoint
from relay.audit.chain import Chain
from relay.audit.policy_places import newest_first
from relay.audit.verifying import verify
from relay.cli.audit import audit
from relay.errors import ConfigError
from relay.identity.composite import public_info
from relay.process import app
from tests.integration.audit.test_records import alice as alice  # a fixture
from tests.testlib import mails, second_verifier
from tests.testlib.identities import fixed_signing_key
from tests.testlib.sites import Site
from tests.testlib.submit import submit

VECTORS = Path(__file__).parents[2] / "data" / "audit"
SIGNER = "454f038eef169f85fa1c6e168544b3e9eae4c98e0b727c8460d4c5a0c56250c8"

Run = Callable[..., Result]


@pytest.fixture
async def run(alice: Site) -> Run:
    """The command, at a site that has sealed one mail, sent one in clear, and refused one, since it has policies."""
    async with app.running(alice.config) as addresses:
        async with asyncio.timeout(30):
            while not list(newest_first(alice.config.audit_directory)):
                await asyncio.sleep(0.01)
        for recipient in ("ben@bob.example", "x@elsewhere.example", "held@bob.example"):
            await submit(addresses["outgoing"], mails.plain(), recipients=[recipient])
    environment = {"QUMAIL_RELAY_CONFIG": str(alice.config_file)}
    return lambda *words: CliRunner().invoke(audit, words, env=environment)


def lines(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_verify_tells_whether_the_record_is_whole(run: Run, alice: Site) -> None:
    assert "5 records, whole; the last is 5, head " in run("verify").stdout
    facts = json.loads(run("verify", "--json").stdout)
    assert (facts["records"], facts["problems"]) == (5, [])
    assert run("verify", "--head", facts["head"]).exit_code == 0
    assert run("verify", "--head", "ab" * 32).exit_code == 1
    [path] = alice.config.audit_directory.glob("*.jsonl")
    path.write_bytes(path.read_bytes().replace(b'"level": "aes"', b'"level": "otp"', 1))
    changed = run("verify")
    assert changed.exit_code == 1
    assert f"{path}:3: does not continue the line before it" in changed.stderr


def test_a_record_that_is_not_there_yet_is_fine(alice: Site) -> None:
    environment = {"QUMAIL_RELAY_CONFIG": str(alice.config_file)}
    assert "nothing was recorded" in CliRunner().invoke(audit, ["verify"], env=environment).stdout
    assert CliRunner().invoke(audit, ["export"], env=environment).stdout == ""


def test_export_hands_out_what_was_asked_for(run: Run) -> None:
    assert [(each["event"], each.get("outcome")) for each in lines(run("export"))] == [
        ("policies", None), ("mail", "delivered"), ("plaintext", None), ("mail", "delivered"), ("mail", "refused"),
    ]  # fmt: skip
    assert {each["peer"] for each in lines(run("export", "--peer", "bob"))} == {"bob"}
    assert lines(run("export", "--since", "9999-01-01")) == lines(run("export", "--until", "2020-01-01")) == []
    assert len(lines(run("export", "--since", "2020-01-01 00:00", "--until", "9999-01-01"))) == 5
    below = lines(run("export", "--below", "rsa"))
    assert [(each["event"], each["level"]) for each in below] == [("plaintext", "plaintext"), ("mail", "plaintext")]
    assert [each["level"] for each in lines(run("export", "--below", "otp"))] == ["aes", "plaintext", "plaintext"]
    assert run("export", "--below", "nothing").exit_code == 2


def test_times_are_compared_as_times_in_the_zone_that_stands_there(tmp_path: Path) -> None:
    at = ["2026-11-27T06:59:59.999Z", "2026-11-27T07:00:00.123Z", "2026-11-27T07:00:01.000Z"]
    text = "".join(json.dumps({"number": n, "time": each, "event": "mail"}) + "\n" for n, each in enumerate(at, 1))
    (tmp_path / "000000000001-2026-11-27.jsonl").write_text(text)

    def numbers(*words: str) -> list[int]:
        return [
            each["number"]
            for each in lines(CliRunner().invoke(audit, ["export", "--directory", str(tmp_path), *words]))
        ]

    assert numbers("--since", "2026-11-27T07:00:00Z") == numbers("--since", "2026-11-27 07:00") == [2, 3]
    assert numbers("--since", "2026-11-27T12:00:00+05:00") == [2, 3]
    assert numbers("--until", "2026-11-27T07:00:00Z") == [1]
    assert numbers("--until", "2026-11-27 23:59") == [1, 2, 3]
    assert numbers("--until", "2026-11-27") == []
    for wrong in ("27.11.2026", "yesterday", "2026-13-45", ""):
        result = CliRunner().invoke(audit, ["export", "--directory", str(tmp_path), "--since", wrong])
        assert (result.exit_code, "is no time" in result.stderr) == (2, True)


def test_a_peer_that_is_neither_configured_nor_recorded_is_an_error_that_names_those_who_are(run: Run) -> None:
    result = run("export", "--peer", "bbo")
    assert (result.stdout, str(result.exception)) == ("", "no peer 'bbo'; known are bob")


def test_what_was_released_from_quarantine_is_told_with_what_had_protected_it_and_what_was_dropped_is_not(
    tmp_path: Path,
) -> None:
    said = [("released", "plaintext"), ("released", "pqc"), ("released", "aes"), ("dropped", "nothing")]
    text = "".join(
        json.dumps({"number": n, "event": event, "level": level}) + "\n" for n, (event, level) in enumerate(said)
    )
    (tmp_path / "000000000001-2026-11-27.jsonl").write_text(text)
    found = CliRunner().invoke(audit, ["export", "--directory", str(tmp_path), "--below", "aes"])
    assert [each["level"] for each in lines(found)] == ["plaintext", "pqc"]


def test_a_table_has_the_same_records_and_no_formulas(run: Run, tmp_path: Path, alice: Site) -> None:
    path = tmp_path / "table.csv"
    assert run("export", "--format", "csv", "-o", str(path)).exit_code == 0
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    whole = lines(run("export"))
    assert [row["number"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert [row["recipients"] for row in rows] == [" ".join(each.get("recipients", ())) for each in whole]
    assert {name for each in whole for name in each} <= rows[0].keys()
    [file] = alice.config.audit_directory.glob("*.jsonl")
    line = json.dumps(whole[-1] | {"cause": "=cmd|' /C calc'!A0\x1b[2J"})
    file.write_text(line + "\n")
    [row] = csv.DictReader(io.StringIO(run("export", "--format", "csv").stdout))
    assert row["cause"].startswith("'=cmd|")
    assert "\x1b" not in row["cause"]


def test_a_checkpoint_fits_what_was_there_and_comes_later_and_nothing_else(
    run: Run, alice: Site, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.json"
    made = run("checkpoint", "-o", str(path))
    assert (made.exit_code, "signed: 5 records" in made.stderr) == (0, True)
    signer = made.stderr.split()[-1]
    for more in ([], ["--signer", signer]):
        result = run("verify", "--checkpoint", str(path), *more)
        assert (result.exit_code, "whole and fits the checkpoint" in result.stdout) == (0, True)
    other = run("verify", "--checkpoint", str(path), "--signer", SIGNER)
    assert "which is another key" in str(other.exception)
    [file] = alice.config.audit_directory.glob("*.jsonl")
    kept = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(kept[:-1]))
    assert run("verify").exit_code == 0, "the chain alone does not show it"
    assert run("verify", "--checkpoint", str(path)).exit_code == 1


def test_a_checkpoint_that_was_taken_while_the_last_line_was_broken_off_fits_ever_after(
    run: Run, alice: Site, tmp_path: Path
) -> None:
    [file] = alice.config.audit_directory.glob("*.jsonl")
    with file.open("ab") as opened:
        opened.write(b'{"number": 6, "ti')
    path = str(tmp_path / "checkpoint.json")
    assert run("checkpoint", "-o", path).exit_code == 0
    assert run("verify", "--checkpoint", path).exit_code == 0
    chain = Chain(alice.config.audit_directory)
    chain.append([b'"event": "test"'], flush=False)
    assert run("verify", "--checkpoint", path).exit_code == 0


def test_a_checkpoint_of_an_empty_record_fits_whatever_is_recorded_later(alice: Site, tmp_path: Path) -> None:
    words = ["-o", str(tmp_path / "checkpoint.json")]
    environment = {"QUMAIL_RELAY_CONFIG": str(alice.config_file)}
    assert CliRunner().invoke(audit, ["checkpoint", *words], env=environment).exit_code == 0
    Chain(alice.config.audit_directory).append([b'"event": "test"'], flush=False)
    result = CliRunner().invoke(audit, ["verify", "--checkpoint", words[1]], env=environment)
    assert (result.exit_code, "fits the checkpoint" in result.stdout) == (0, True)


def test_a_record_that_was_changed_is_not_signed(run: Run, alice: Site) -> None:
    [path] = alice.config.audit_directory.glob("*.jsonl")
    path.write_bytes(path.read_bytes().replace(b'"aes"', b'"otp"', 1))
    result = run("checkpoint")
    assert isinstance(result.exception, ConfigError)
    assert result.stdout == ""


@pytest.mark.parametrize("name", ["checkpoint", "key", "signature", "format"])
def test_a_checkpoint_of_which_anything_was_changed_counts_for_nothing(name: str) -> None:
    whole = json.loads((VECTORS / "checkpoint.json").read_text())
    if name == "format":
        whole[name] = 1
    else:
        octets = bytearray(base64.b64decode(whole[name]))
        octets[len(octets) // 2] ^= 1
        whole[name] = base64.b64encode(octets).decode()
    with pytest.raises(ConfigError):
        checkpoint.read(json.dumps(whole).encode(), "x")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"format": 2}', b"[" * 100_000, b"\xff", b'{"a": 1}' * 9])
def test_what_is_no_checkpoint_is_said(content: bytes) -> None:
    with pytest.raises(ConfigError, match="x: "):
        checkpoint.read(content, "x")


def test_numbers_and_hashes_that_are_none_are_no_checkpoint() -> None:
    key = fixed_signing_key()
    good = {
        "site": "a",
        "sae_id": "s",
        "host": "h",
        "time": "2026-11-25T10:00:00Z",
        "first": 1,
        "number": 4,
        "head": "a" * 64,
    }
    for change in ({"number": True}, {"first": 9}, {"head": "A" * 64}, {"host": 1}, {"time": "noon"}, {"site": "\x1b"}):
        said = checkpoint.Checkpoint(**(good | change))  # type: ignore[arg-type]
        with pytest.raises(ConfigError):
            checkpoint.read(checkpoint.sign(said, key).encode(), "x")


def test_the_vectors_verify_at_an_auditor_who_has_nothing_else(tmp_path: Path) -> None:
    shutil.copytree(VECTORS, tmp_path / "copy")
    words = [
        "verify",
        "--directory",
        str(tmp_path / "copy"),
        "--checkpoint",
        str(VECTORS / "checkpoint.json"),
        "--signer",
        SIGNER,
    ]
    nothing = {"QUMAIL_RELAY_CONFIG": str(tmp_path / "nothing")}
    whose = CliRunner().invoke(audit, words[:-2], env=nothing)
    assert str(whose.exception).startswith("say with --signer whose checkpoint it is")
    result = CliRunner().invoke(audit, words, env=nothing)
    assert (result.exit_code, "4 records, whole and fits the checkpoint" in result.stdout) == (0, True)
    assert "broken off by a crash" in result.stdout


def test_the_vectors_are_what_the_document_says() -> None:
    """Read without any code of ours."""
    number, previous = 0, "0" * 64
    for path in sorted(VECTORS.glob("*.jsonl")):
        assert path.name == f"{number + 1:012}-{path.name[13:23]}.jsonl"
        for line in path.read_bytes().split(b"\n")[:-1]:
            digest = hashlib.sha256(line).hexdigest()
            try:
                record = json.loads(line)
            except ValueError:
                previous = hashlib.sha256((previous + digest).encode()).hexdigest()
            else:
                number += 1
                assert (record["number"], record["previous"]) == (number, previous)
                previous = digest
    whole = json.loads((VECTORS / "checkpoint.json").read_text())
    inner = base64.b64decode(whole["checkpoint"])
    second_verifier.verify(base64.b64decode(whole["key"]), base64.b64decode(whole["signature"]), inner)
    said = json.loads(inner)
    assert (said["number"], said["head"]) == (number, previous)
    assert base64.b64decode(whole["key"]) == public_info(fixed_signing_key().public_key())
    assert verify(VECTORS).head == previous
