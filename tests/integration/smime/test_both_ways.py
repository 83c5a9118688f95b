"""A site without a KME, and Ben with OpenSSL alone, write to each other through real Postfix, in each way of it.
Standard: what deploy/SMIME.md says to type, as it stands there; deploy/postfix as it stands.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from textwrap import dedent

from relay.smime import OwnKey
from relay.smime.directory import fingerprint
from tests.testlib import mails, postfix
from tests.testlib.house import ENTRIES, WAYS
from tests.testlib.ports import free_addresses
from tests.testlib.postfix import requires_postfix
from tests.testlib.relay_command import run
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, relay_process
from tests.testlib.smime import ca, certified, key_pem, make_smime_site, pem, write_secret

DOCUMENT = (Path(__file__).parents[3] / "deploy" / "SMIME.md").read_text()
ANN, BEN, BEA, OTTO = "ann@alice.example", "ben@bob.example", "bea@bob.example", "otto@alice.example"
OFFICE, ANNS = certified("securemail@alice.example", number=100), certified(ANN, kind="p256", number=102)
BENS, GATEWAY = certified(BEN, kind="p256", number=103), certified("securemail@bob.example", number=105)
TEXT = "The budget of the merger.\r\n"
DATED = b"Date: Wed, 2 Dec 2026 12:00:00 +0000\r\nMessage-ID: <1@bob.example>\r\n"
"""What Ben's mail server adds."""


def blocks(heading: str, kind: str) -> list[str]:
    """What is to be written or typed under a heading."""
    text = DOCUMENT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [dedent(each) for each in re.findall(rf"^ *```{kind}\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)]


async def typed(site: Site, *words: str, answer: str = "") -> str:
    """What a command of the relay says, on one line."""
    environment = {"QUMAIL_RELAY_CONFIG": str(site.config_file), "COLUMNS": "1000"}
    status, err, out = await run(*words, stdin=answer.encode(), environment=environment)
    assert status == 0 or words == ("check",), err
    return " ".join(f"{out.decode()} {err}".split())


def typed_by_ben(directory: Path, block: str) -> str:
    return subprocess.run(
        ["bash", "-o", "pipefail", "-ec", block], cwd=directory, capture_output=True, check=True
    ).stdout.decode()


async def as_the_document_says(directory: Path, site: Site) -> None:
    """Alice's administrator does all that there is to type, with the files that others have sent."""
    install, first, check_and_explain = blocks("What to type", "sh")
    install = install.replace("/etc/qumail-relay", str(site.directory)).replace("-o qumail-relay", f"-o {os.geteuid()}")
    for name, own in (("alice.example", OFFICE), ("ann", ANNS)):
        (directory / f"{name}.pem").write_bytes(pem(own.certificate, *own.chain))
        (directory / f"{name}.key").write_bytes(key_pem(own))
        subprocess.run(["bash", "-ec", install.replace("alice.example.", f"{name}.")], cwd=directory, check=True)
    (site.directory / "smime/anchors.pem").write_bytes(pem(ca().certificate))
    for file, theirs in (("ben.cer", BENS), ("gateway.cer", GATEWAY)):
        (directory / file).write_bytes(pem(theirs.certificate))
    keys, policy = blocks("What to type", "toml")
    anns = keys.replace("alice.example.", "ann.") + f'mailboxes = ["{ANN}"]\n'
    [trust] = blocks("Mail that arrives", "toml")
    trust = re.sub(r"^crls = .*\n", "", trust, flags=re.MULTILINE)
    text = site.config_file.read_text().partition("[[smime.keys]]")[0]
    site.config_file.write_text(text + (keys + anns + trust).replace("/etc/qumail-relay", str(site.directory)))
    (site.directory / "policies/bob.example.toml").write_text(policy)
    gateways, *_ = blocks("Certificates of others", "sh")
    for command, theirs in ((first, BENS), (gateways, GATEWAY)):
        _, *words = shlex.split(command)
        shown = await typed(site, *words[:-1], str(directory / words[-1]), answer="y\n")
        assert fingerprint(theirs.certificate) in shown
        assert "Imported for" in shown
    check, explain = (shlex.split(each)[1:] for each in check_and_explain.splitlines())
    said = await typed(site, *check)
    assert "are wrong: outgoing next hop, incoming next hop." in said, "they start later"
    assert "certificates: for 2 addresses and domains" in said
    assert "smime" in await typed(site, *explain)


def what_ben_has(directory: Path, theirs: OwnKey) -> None:
    directory.mkdir()
    for name, content in (("ben.pem", pem(theirs.certificate)), ("ben.key", key_pem(theirs))):
        write_secret(directory / name, content)
    (directory / "alice.example.pem").write_bytes(pem(OFFICE.certificate))
    (directory / "ann.pem").write_bytes(pem(ANNS.certificate))
    (directory / "ca.pem").write_bytes(pem(ca().certificate))
    (directory / "letter.txt").write_text(TEXT)


@requires_postfix
async def test_people_and_a_gateway_with_openssl_alone_write_to_a_site_and_it_to_them(
    tmp_path: Path, sink: Sink
) -> None:
    smtp, sealed, opened = free_addresses(3)
    site = make_smime_site(
        tmp_path / "alice", outgoing=sealed, incoming=opened, certificates={}, entries=ENTRIES,
        policies={"alice.example.toml": 'levels = ["plaintext"]\nreason = "inside"\n'},
    )  # fmt: skip
    await as_the_document_says(tmp_path, site)
    for name, theirs in ((BEN, BENS), (BEA, GATEWAY)):
        what_ben_has(tmp_path / name, theirs)
    write, read = blocks("A side with OpenSSL alone", "sh")
    mailboxes = f"mailboxes:[{sink.address.host}]:{sink.address.port}"
    async with relay_process(site) as relay:
        ports = {15026: sealed, 15036: opened}
        for direction, port in (("outgoing", 15024), ("incoming", 15034)):
            for offset, listener in enumerate((f"{direction}_lmtp", direction)):
                ports[port + offset] = relay.addresses[listener]
            ports[port + 4] = relay.addresses[f"{direction}_milter"]
        for way in ("lmtp", "incoming-proxy", "milter"):
            settings = {"default_transport": mailboxes, "myhostname": "mail.alice.example"}
            async with postfix.running(smtp=smtp, fragments=WAYS[way], ports=ports, settings=settings) as alice:
                for recipient in (BEN, BEA):
                    before = len(sink.got)
                    reply = await alice.submit(mails.plain(body=TEXT), sender=ANN, recipients=[recipient])
                    assert reply.code == 250, (way, reply, alice.log)
                    await sink.messages(before + 1)
                    (tmp_path / recipient / "ann.eml").write_bytes(sink.got[-1].message)
                    assert TEXT.strip() not in sink.got[-1].message.decode()
                    assert TEXT.strip() in typed_by_ben(tmp_path / recipient, read)
                for key in ("alice.example.pem", "ann.pem"):
                    before = len(sink.got)
                    typed_by_ben(tmp_path / BEN, write.replace("alice.example.pem", key))
                    written = DATED + (tmp_path / BEN / "mail.eml").read_bytes().replace(b"\n", b"\r\n")
                    reply = await alice.submit(written, sender=BEN, recipients=[ANN])
                    assert reply.code == 250, (way, reply, alice.log)
                    await sink.messages(before + 1)
                    got = sink.got[-1].message.decode()
                    assert f"X-QuMail-Protection: smime; signed=good; signer={BEN}; site=" in got, (way, key)
                    assert TEXT in got
                    assert "Subject: Budget\r\n" in got
                # Sealed to Ann's key alone: the relay cannot open it for Otto, and Otto's program may.
                before = len(sink.got)
                assert (await alice.submit(written, sender=BEN, recipients=[OTTO])).code == 250
                await sink.messages(before + 1)
                assert [each.recipients for each in sink.got[before:]] == [(OTTO,)], (way, alice.log)
                assert sink.got[-1].message.endswith(written.partition(b"\r\n\r\n")[2]), way
