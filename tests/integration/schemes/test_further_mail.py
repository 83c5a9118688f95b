"""Policies that ask for further KEMs, and mail that goes through every layer and back.
Standard: policies/README.md (`kem`), relay/FORMAT.md.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from relay.errors import (
    BadSignature,
    BadStructure,
    ConfigError,
    PolicyHolds,
)
from relay.formats import mime
from relay.formats.cms import FURTHER_KEMS
from relay.identity import (
    liboqs,
)
from relay.journey.sealing import SealedCopy
from relay.mail import Envelope, Mail, Recipient
from relay.policy.content import MessageFacts
from relay.policy.findings import kems_not_here
from relay.policy.load import load_policies
from relay.process import assembly
from relay.schemes.further_kem import FurtherKEM
from relay.schemes.pqc import PQC
from tests.integration.schemes.further_kems import ALL_KEMS, HQC, use, with_kems
from tests.testlib import mails
from tests.testlib.identities import Identities
from tests.testlib.keys import MemoryKeys
from tests.testlib.payloads import payload
from tests.testlib.sites import Site


def policies(tmp_path: Path, text: str) -> Any:
    (tmp_path / "policies").mkdir(exist_ok=True)
    (tmp_path / "policies" / "default.toml").write_text(text)
    return load_policies(tmp_path / "policies", {"bob": ["bob.example"]})


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('"ml-kem-1024-p384"', ("ml-kem-1024-p384",)),
        ('"ML-KEM-1024-P384"', ("ml-kem-1024-p384",)),
        ('["ml-kem-1024-p384"]', ("ml-kem-1024-p384",)),
        ('["hqc-256", "ml-kem-1024-p384"]', ("ml-kem-1024-p384", "hqc-256")),
        (ALL_KEMS, ("ml-kem-1024-p384", *FURTHER_KEMS)),
    ],
)
def test_policies_list_the_kems_and_ml_kem_is_the_innermost(
    tmp_path: Path, written: str, expected: tuple[str, ...]
) -> None:
    decision = policies(tmp_path, f'levels = ["pqc+aes", "pqc", "aes"]\nkem = {written}\n').decide(
        "a@alice.example", "b@bob.example"
    )
    assert decision.kem == expected
    assert decision.layers("pqc") == ("pqc", *expected[1:])
    assert decision.layers("aes") == ("aes",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('kem = ["ml-kem-1024-p384", "hqc-265"]', "'hqc-265' is not a KEM that is known here; did you mean 'hqc-256'?"),
        ('kem = ["ml-kem-1024-p384", 5]', "known: ml-kem-1024-p384, hqc-256"),
        ('kem = ["hqc-256"]', "'ml-kem-1024-p384' is missing; further KEMs go around it"),
        ('kem = "hqc-256"', "'ml-kem-1024-p384' is missing"),
        ("kem = []", "write a list of KEMs"),
        ("kem = 1", "write a list of KEMs"),
        ('kem = ["ml-kem-1024-p384", "ml-kem-1024-p384"]', "listed twice"),
        (
            'levels = ["rsa+aes", "rsa"]\nkem = ["ml-kem-1024-p384", "hqc-256"]',
            "'hqc-256' goes around level pqc, which is not listed",
        ),
    ],
)
def test_what_is_wrong_with_kem_is_said_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    text = text if text.startswith("levels") else f'levels = ["pqc+aes", "pqc"]\n{text}'
    with pytest.raises(ConfigError) as caught:
        policies(tmp_path, text)
    assert "default.toml:2: kem" in str(caught.value)
    assert expected in str(caught.value)


def test_a_message_takes_no_kem_away(tmp_path: Path) -> None:
    rule = '[[when]]\nsubject_tag = "[two]"\nlevels = ["pqc"]\n'
    file = 'levels = ["pqc", "rsa"]\nkem = ["ml-kem-1024-p384", "hqc-256"]\n'
    with pytest.raises(ConfigError, match=r"when\.0\.kem: unknown setting"):
        policies(tmp_path, file + rule + 'kem = "ml-kem-1024-p384"\n')
    decision = policies(tmp_path, file + rule).decide(
        "ann@alice.example", "b@bob.example", MessageFacts(b"Subject: [two]\r\n\r\n")
    )
    assert (decision.levels, decision.kem) == (("pqc",), ("ml-kem-1024-p384", "hqc-256"))


@pytest.mark.usefixtures("no_library")
def test_without_the_library_check_refuses_the_names_with_file_line_and_the_way_to_install(tmp_path: Path) -> None:
    found = policies(tmp_path, 'levels = ["pqc+aes", "pqc"]\n\nkem = ["ml-kem-1024-p384", "hqc-256"]\n')
    [first] = map(str, kems_not_here(found))
    assert "default.toml:3:1: hqc-256: the native library liboqs is missing" in first
    assert "pip install liboqs-python" in first


async def seal(site: Site, *names: str) -> list[SealedCopy]:
    recipients = tuple(Recipient(f"{name}@bob.example") for name in names)
    async with assembly.parts(site.config, prefetch=False) as parts:
        mail = Mail(Envelope("ann@alice.example", recipients), mails.random_attachment(20_000))
        sealed = await parts.sealer.seal(mail)
        for failure in sealed.failures.values():
            raise failure
        return sealed.copies


async def test_mail_goes_through_every_layer_and_back(sites: tuple[Site, Site]) -> None:
    alice, bob = sites
    protections = {"all": f"pqc+{'+'.join(FURTHER_KEMS)}+aes", "hqc": "pqc+hqc-256", "one": "pqc"}
    for name, protection in protections.items():
        [form] = await seal(alice, name)
        assert form.protection == protection
        async with assembly.parts(bob.config, prefetch=False) as parts:
            opened = await parts.originals.opener.open(form.message)
        assert opened is not None
        assert (opened.original, opened.protection, opened.peer) == (
            mails.random_attachment(20_000),
            protection,
            "alice",
        )


async def test_recipients_with_other_kems_get_another_message(sites: tuple[Site, Site]) -> None:
    alice, _ = sites
    forms = await seal(alice, "hqc", "one", "else")
    assert sorted((form.protection, len(form.recipients)) for form in forms) == [("pqc", 1), ("pqc+hqc-256", 2)]


async def test_a_layer_that_cannot_be_had_is_never_left_out(
    sites: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, _ = sites
    use(monkeypatch, f"the native library liboqs is missing: {liboqs.INSTALL}")
    with pytest.raises(PolicyHolds, match="pqc: hqc-256: the native library liboqs is missing"):
        await seal(alice, "hqc")
    [form] = await seal(alice, "else")
    assert form.protection == "rsa", "the next level that policy lists"
    [form] = await seal(alice, "one")
    assert form.protection == "pqc"
    # Without the rule it would have left by pqc: what only raises must not have it leave by rsa.
    with pytest.raises(PolicyHolds, match="pqc: hqc-256: the native library liboqs is missing"):
        await seal(alice, "raised")


async def layered(people: Identities, *layers: str, inner: bytes | None = None) -> bytes:
    """A sealed message whose layers were put around each other without any check."""
    content = payload(mails.plain(), "+".join(layers)) if inner is None else inner
    for name in layers:
        level = PQC() if name == "pqc" else FurtherKEM(name)
        content = bytes(mime.wrap_enveloped((await level.seal(content, people.to_bob(), MemoryKeys())).der))
    _, der, _ = mime.unwrap(content)
    return mime.sealed_message(mails.plain(), der)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ((HQC,), "message data inside a layer of hqc-256"),
        ((HQC, "pqc"), "enveloped data inside a layer of pqc"),
        (("pqc", HQC, HQC), "hqc-256 inside a layer of"),
        (("pqc", HQC, "frodokem-1344-shake", HQC), "hqc-256 inside a layer of"),
    ],
)
async def test_layers_in_another_order_than_we_write_are_refused(
    sites: tuple[Site, Site], people: Identities, layers: tuple[str, ...], expected: str
) -> None:
    """Above all, knowledge of Bob's public key alone must not pass for Alice."""
    _, bob = sites
    message = await layered(people, *layers)
    async with assembly.parts(bob.config, prefetch=False) as parts:
        with pytest.raises((BadStructure, BadSignature), match=expected):
            await parts.originals.opener.open(message)


async def test_a_layer_for_somebody_else_is_left_as_it_is(
    sites: tuple[Site, Site], people: Identities, tmp_path: Path
) -> None:
    _, bob = sites
    eve = with_kems(people.eve, tmp_path / "eve", "eve", "3", (HQC,))
    message = await layered(replace(people, bob=eve), "pqc", HQC)
    async with assembly.parts(bob.config, prefetch=False) as parts:
        assert await parts.originals.opener.open(message) is None
