"""Mail out at level smime through real Postfix, without a KME: OpenSSL, NSS and gpgsm open and verify.
Standard: RFC 8551; the certificates are as CAs issue them, RSA and elliptic curves.
"""

from __future__ import annotations

import base64
import re
import shutil
from contextlib import AsyncExitStack
from pathlib import Path

from relay.formats import mime
from relay.smime import OwnKey
from tests.testlib import mails, postfix
from tests.testlib.gpgsm import gpgsm_of
from tests.testlib.nss import NSS
from tests.testlib.ports import free_addresses
from tests.testlib.postfix import requires_postfix
from tests.testlib.sink import Sink
from tests.testlib.sites import relay_process
from tests.testlib.smime import certified, make_smime_site, opened_by_openssl

PEOPLE = {
    "rsa@bob.example": certified("rsa@bob.example"),
    "p256@bob.example": certified("p256@bob.example", kind="p256"),
    "p384@bob.example": certified("p384@bob.example", kind="p384"),
    "rsa@carol.example": certified("rsa@carol.example", number=1),
    "p256@carol.example": certified("p256@carol.example", kind="p256", number=1),
}
"""Carol's programs know no newer forms."""
SETTINGS = 'cbc = ["carol.example"]\npkcs1 = ["carol.example"]\n'


def halves(inner: bytes) -> tuple[bytes, bytes]:
    """The entity of a multipart/signed, and the DER of its signature."""
    found = re.search(rb'boundary="([^"]+)"', inner)
    assert found is not None
    _, entity, signature, _ = inner.split(b"--" + found[1])
    return entity.removeprefix(b"\r\n").removesuffix(b"\r\n"), base64.b64decode(mime.split(signature.lstrip())[1])


def opened_by_nss(directory: Path, message: bytes, theirs: OwnKey) -> bytes:
    """The entity that cmsutil decrypts with this key, whose signature it finds good under our CA."""
    nss = NSS.of(directory / "nss", theirs)
    entity, signature = halves(nss.run("cmsutil", "-D", data=mime.sealed_content(message)))
    (nss.directory / "entity").write_bytes(entity)
    (nss.directory / "signature").write_bytes(signature)
    shown = nss.run("cmsutil", "-D", "-h", "1", "-n", "-c", "entity", "-i", "signature")
    assert b"signer0.status=GoodSignature" in shown, shown
    return entity


def opened_by_gpgsm(directory: Path, message: bytes, theirs: OwnKey) -> bytes:
    """The same by gpgsm, which fails for a signature that is not good."""
    with gpgsm_of(theirs) as gpgsm:
        entity, signature = halves(gpgsm.run("--output", "-", "--decrypt", data=mime.sealed_content(message)))
        (directory / "signature").write_bytes(signature)
        gpgsm.run("--verify", str(directory / "signature"), data=entity)
    return entity


@requires_postfix
async def test_mailboxes_get_mail_that_openssl_nss_and_gpgsm_open(tmp_path: Path, sink: Sink) -> None:
    smtp, sealed = free_addresses(2)
    originals = {each: mails.random_attachment(30_000) for each in PEOPLE}
    async with AsyncExitStack() as stack:
        site = make_smime_site(
            tmp_path / "alice", outgoing=sealed, policies={"default.toml": 'levels = ["smime"]\n'}, certificates=PEOPLE, settings=SETTINGS,
        )  # fmt: skip
        relay = await stack.enter_async_context(relay_process(site))
        ports = {15024: relay.addresses["outgoing_lmtp"], 15025: relay.addresses["outgoing"], 15026: sealed}
        to = {
            "default_transport": f"mailboxes:[{sink.address.host}]:{sink.address.port}",
            "myhostname": "mail.alice.example",
        }
        running = postfix.running(smtp=smtp, fragments=("outgoing-lmtp",), ports=ports, settings=to)
        alice = await stack.enter_async_context(running)
        for each, original in originals.items():
            assert (await alice.submit(original, recipients=[each])).code == 250
        await sink.messages(len(PEOPLE))
    for got in sink.got:
        [recipient] = got.recipients
        name = recipient.replace("@", "-")
        (tmp_path / name).mkdir()
        older = recipient.endswith("@carol.example")
        assert (b"smime-type=enveloped-data" in got.message) is older
        entities = [opened_by_openssl(tmp_path / name, got.message, PEOPLE[recipient])]
        for program, opened in (("cmsutil", opened_by_nss), ("gpgsm", opened_by_gpgsm)):
            if older and shutil.which(program):
                entities.append(opened(tmp_path / name, got.message, PEOPLE[recipient]))
        for entity in entities:
            assert mime.split(entity)[1] == mime.split(originals[recipient])[1]
