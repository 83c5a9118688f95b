"""Peers for whom further KEMs are asked for, and mail that goes through every layer and back.
Standard: deploy/SETTINGS.md (`further_kems`), relay/FORMAT.md.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from relay.config import load_config
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
from relay.process import assembly
from relay.schemes.further_kem import FurtherKEM
from relay.schemes.pqc import PQC
from tests.integration.schemes.further_kems import HQC, ask_for, use, with_kems
from tests.testlib import mails
from tests.testlib.identities import Identities
from tests.testlib.keys import MemoryKeys
from tests.testlib.payloads import payload
from tests.testlib.sites import Site


@pytest.mark.parametrize(
    ("kems", "expected"),
    [
        (("hqc-265",), "'hqc-265' is no further KEM; did you mean 'hqc-256'?"),
        (("ml-kem-1024-p384",), "'ml-kem-1024-p384' is no further KEM; "),
        ((HQC, HQC), "listed twice"),
    ],
)
def test_what_is_wrong_with_further_kems_is_said(
    sites: tuple[Site, Site], kems: tuple[str, ...], expected: str
) -> None:
    ask_for(sites[0], *kems)
    with pytest.raises(ConfigError, match=re.escape(expected)) as caught:
        load_config(sites[0].config_file)
    assert "peers.bob.further_kems" in str(caught.value)


async def seal(site: Site, *names: str) -> list[SealedCopy]:
    recipients = tuple(Recipient(f"{name}@bob.example") for name in names)
    async with assembly.parts(site.config, prefetch=False) as parts:
        mail = Mail(Envelope("ann@alice.example", recipients), mails.random_attachment(20_000))
        sealed = await parts.sealer.seal(mail)
        for failure in sealed.failures.values():
            raise failure
        return sealed.copies


@pytest.mark.parametrize("kems", [(), (HQC,), FURTHER_KEMS], ids="-".join)
async def test_mail_goes_through_every_layer_and_back(sites: tuple[Site, Site], kems: tuple[str, ...]) -> None:
    alice, bob = sites
    ask_for(alice, *kems)
    for name, layers in {"top": ("pqc", *kems, "aes"), "one": ("pqc", *kems)}.items():
        [form] = await seal(alice, name)
        assert form.protection == "+".join(layers)
        async with assembly.parts(bob.config, prefetch=False) as parts:
            opened = await parts.originals.opener.open(form.message)
        assert opened is not None
        assert (opened.original, opened.protection, opened.peer) == (
            mails.random_attachment(20_000),
            form.protection,
            "alice",
        )


async def test_a_layer_that_cannot_be_had_is_never_left_out(
    sites: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, _ = sites
    ask_for(alice, HQC)
    use(monkeypatch, f"the native library liboqs is missing: {liboqs.INSTALL}")
    with pytest.raises(PolicyHolds, match="pqc: hqc-256: the native library liboqs is missing"):
        await seal(alice, "one")
    [form] = await seal(alice, "else")
    assert form.protection == "rsa", "the next level that policy lists"
    # Without the rule it would have left by pqc: what only raises must not have it leave by rsa.
    with pytest.raises(PolicyHolds, match="pqc: hqc-256: the native library liboqs is missing"):
        await seal(alice, "raised")
    ask_for(alice)
    [form] = await seal(alice, "one")
    assert form.protection == "pqc"


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
