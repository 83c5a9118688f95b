"""Whatever arrives is opened to exactly the original or refused with a typed error, soon and in little memory.
Standard: every success among the test vectors, mutated in all ways; attacks within 100 ms and 64 MiB.
"""

from __future__ import annotations

import asyncio
import base64
import random
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import pybase64
import pytest
from hypothesis import given, strategies as st

from relay.config import Config
from relay.errors import BadStructure, CannotOpen, MalformedMessage, RelayError, TryLater
from relay.formats import cms, mime
from relay.formats.cms.der import header
from relay.journey.opening import MailOpener
from relay.journey.opening.layers import ASKED_FIRST, Layers
from relay.keys import Key, KeyReference
from relay.keys.ring import KeyRing
from relay.mail import OpenedMail
from relay.schemes import Opening, Parties, Scheme
from relay.schemes.aes import AES
from relay.schemes.otp import OneTimePad
from relay.schemes.padding import MAX_BOUND_OCTETS, MAX_EXPANSION, compress, decompress
from relay.schemes.pqc import PQC
from relay.schemes.rsa import RSA
from relay.store.delivery_attempts import Begun
from relay.store.delivery_records import DeliveryRecords
from relay.store.received import ReceivedKeys
from relay.store.received_table import Bound
from tests.testlib.keys import MemoryKeys
from tests.vectors import parts, trees
from tests.vectors.case import NOW, Case, message, read_all
from tests.vectors.people import person
from tests.vectors.settings import CONFIG
from tests.vectors.trees import Node

MIB = 1024 * 1024
CASES = {case.name: case for case in read_all() if case.expect == "success" and case.form == "cms"}
SMALL = [CASES[name] for name in ("otp-two-keys", "aes-plain", "aes-ber", "otp-compressed")]
CERTIFIED = [CASES[name] for name in ("pqc-plain", "rsa-by-issuer", "pqc+aes-plain", "rsa+aes-plain")]


class Keys:
    """A key ring and a store with some keys, that have opened nothing."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self._keys = keys

    async def fetch(
        self, references: Iterable[KeyReference], *, use: cms.KeyUse | None = None, patient: bool = True
    ) -> dict[KeyReference, Key]:
        found = {each: self._keys.get(each.key_ID) for each in references}
        return {each: Key(each.key_ID, octets) for each, octets in found.items() if octets is not None}

    async def unanswered(self, _: object) -> bool:
        return False

    async def admit(self, bound: Sequence[Bound], opened: OpenedMail | None = None) -> Begun:
        return Begun()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    from relay.config import load_config

    directory = tmp_path_factory.mktemp("bob")
    (directory / "relay.toml").write_text(CONFIG)
    (directory / "policies").mkdir()
    return load_config(directory / "relay.toml")


def _opener(config: Config, levels: Mapping[str, Scheme], keys: Keys, **certified: Any) -> MailOpener:
    """Bob's, with the store of `keys` and the time of the vectors."""
    ring, received, openings = cast(KeyRing, keys), cast(ReceivedKeys, keys), cast(DeliveryRecords, keys)
    return MailOpener(lambda: Layers(config, levels, ring, **certified), received, openings, clock=lambda: NOW)


Open = Callable[[bytes, Case], bytes | None]


@pytest.fixture(scope="module")
def opened(config: Config) -> Open:
    """What the opener makes of a CMS in a message: the original, or None where it is nothing for us.

    What cannot be read and names no key of ours is passed on unopened: that opens nothing either.
    """
    levels = {level.name: level for level in (OneTimePad(), AES(), PQC(), RSA())}
    identity, certificates = person("bob").identity, {"alice": person("alice").certificates}

    def open_(content: bytes, case: Case) -> bytes | None:
        keys = Keys({name.key_ID: octets for name, octets in case.keys.items()})
        opener = _opener(config, levels, keys, identity=identity, certificates=certificates)
        found = asyncio.run(opener.open(message(content), case.recipients))
        return None if found is None else found.original

    return open_


def _opens_nothing(opened: Open, content: bytes, case: Case) -> None:
    """It is refused for its structure or, if nothing in it names a key of ours, passed on unopened."""
    try:
        original = opened(content, case)
    except BadStructure:
        return
    assert original is None
    assert not any(name in content for name in (*cms.QUANTUM_KEY_NAMES, *person("bob").identity.key_identifiers))


def _nothing_but_the_original(opened: Open, content: bytes, case: Case) -> None:
    """A changed message is refused, or the change was in what nobody authenticates and the original comes out."""
    try:
        original = opened(content, case)
    except (CannotOpen, TryLater):
        return
    assert original is None or original == parts.ORIGINAL


# Many keys


class AskedKeys(Keys):
    """Knows some keys, and counts those that it was asked for."""

    asked = 0

    async def fetch(
        self, references: Iterable[KeyReference], *, use: cms.KeyUse | None = None, patient: bool = True
    ) -> dict[KeyReference, Key]:
        references = list(references)
        self.asked += len(references)
        return await super().fetch(references, use=use, patient=patient)


class WatchedOTP(OneTimePad):
    """Knows in which threads it was asked for its keys."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int] = set()

    def references(self, enveloped: cms.AuthEnveloped) -> tuple[KeyReference, ...]:
        self.threads.add(threading.get_ident())
        return super().references(enveloped)


async def _open_pad(config: Config, number: int, keys: AskedKeys) -> WatchedOTP:
    """Opens a pad of so many keys that does not open."""
    pad = tuple(f"{index:032x}" for index in range(number))
    sae = config.peers["alice"].sae_id
    content = cms.PadContent(sae, config.site.sae_id, config.peers["alice"].kme_groups[0], 0, pad)
    der = cms.encode_enveloped(cms.AuthEnveloped((cms.PadRecipient(),), content, bytes(16 * number), bytes(16)))
    otp = WatchedOTP()
    opener = _opener(config, {"otp": otp}, keys)
    with pytest.raises((TryLater, BadStructure)):
        await opener.open(mime.sealed_message(b"\r\n", der))
    return otp


async def test_a_pad_whose_first_keys_nobody_knows_has_nobody_asked_for_the_rest(config: Config) -> None:
    keys = AskedKeys({})
    await _open_pad(config, 2000, keys)
    assert keys.asked == ASKED_FIRST
    keys = AskedKeys({f"{number:032x}": bytes(32) for number in range(2000)})
    await _open_pad(config, 2000, keys)
    assert keys.asked == 2000


async def test_the_names_of_very_many_keys_and_a_large_ciphertext_are_read_beside_all_other_mail(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[int] = set()
    fingerprint = cms.AuthEnveloped.fingerprint

    def watched(enveloped: cms.AuthEnveloped) -> bytes:
        threads.add(threading.get_ident())
        return fingerprint(enveloped)

    monkeypatch.setattr(cms.AuthEnveloped, "fingerprint", watched)
    otp = await _open_pad(config, 20_000, AskedKeys({}))
    assert otp.threads, "it was asked"
    assert threads, "it was hashed"
    assert threading.get_ident() not in otp.threads | threads


# Changes of any kind


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_every_truncation_and_every_extension_is_refused(case: Case, opened: Open) -> None:
    lengths = range(0, len(case.content), 3)
    for content in (*(case.content[:length] for length in lengths), *(case.content + more for more in EXTENSIONS)):
        _opens_nothing(opened, content, case)


EXTENSIONS = (b"\0", b"\0\0", b"\x05\0", b"\r\n", b"\x30\0", bytes(1000))


@pytest.mark.parametrize("case", [*SMALL[:2], *CERTIFIED], ids=lambda case: case.name)
def test_elements_left_out_doubled_swapped_or_retagged_release_nothing_else(case: Case, opened: Open) -> None:
    tree = trees.parsed(case.content)
    for path in trees.paths(tree):
        for change in (_left_out, _doubled, _swapped_inside, _emptied, *(_retagged(tag) for tag in TAGS)):
            _nothing_but_the_original(opened, trees.changed(case.content, path, change), case)


TAGS = (0x02, 0x04, 0x06, 0x30, 0x31, 0x80, 0xA0, 0xA4)


def _left_out(node: Node) -> list[Node]:
    return []


def _doubled(node: Node) -> list[Node]:
    return [node, node]


def _emptied(node: Node) -> list[Node]:
    return [(node[0], b"")]


def _swapped_inside(node: Node) -> list[Node]:
    contents = node[1]
    return [(node[0], contents[::-1])]


def _retagged(tag: int) -> Callable[[Node], list[Node]]:
    return lambda node: [(tag, node[1])]


@pytest.mark.parametrize("case", SMALL[:2], ids=lambda case: case.name)
def test_no_length_in_another_form_opens_except_where_all_is_ber(case: Case, opened: Open) -> None:
    """DER is read strictly; BER is told by its outermost length, and then converted."""
    tree = trees.parsed(case.content)
    for path in trees.paths(tree):
        for form in (_needless, _indefinite):
            _opens_nothing(opened, _with(tree, path, form), case)
    assert opened(_with(tree, None, _indefinite), case) == parts.ORIGINAL


def _needless(tag: int, inside: bytes) -> bytes:
    return bytes((tag, 0x84)) + len(inside).to_bytes(4) + inside


def _indefinite(tag: int, inside: bytes) -> bytes:
    return bytes((tag, 0x80)) + inside + b"\0\0"


def _with(node: Node, path: tuple[int, ...] | None, form: Callable[[int, bytes], bytes]) -> bytes:
    """The tree with one element (or the outermost, for None) in another form."""
    tag, contents = node
    if isinstance(contents, bytes):
        inside = contents
    else:
        inside = b"".join(
            _with(child, path[1:], form) if path and path[0] == index else trees.encoded(child)
            for index, child in enumerate(contents)
        )
    return form(tag, inside) if not path else header(tag, len(inside)) + inside


@given(st.sampled_from([*SMALL, *CERTIFIED]), st.data())
def test_mutants_release_nothing_but_the_original(opened: Open, case: Case, data: st.DataObject) -> None:
    content = case.content
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        end = min(len(content), start + data.draw(st.integers(0, 60)))
        piece = content[start:end]
        content = (
            content[:start]
            + data.draw(st.sampled_from([piece * 2, piece[::-1], b""]) | st.binary(max_size=8))
            + content[end:]
        )
    _nothing_but_the_original(opened, content, case)


@given(st.binary(max_size=400))
def test_signed_garbage_is_a_typed_error(garbage: bytes) -> None:
    with pytest.raises(BadStructure):
        cms.decode_signed(garbage)


_pieces = st.sampled_from(
    [b"Content-Type:", b"content-transfer-encoding:", b" application/pkcs7-mime", b";", b"smime-type=", b"smime-type*=",
     b"smime-type*0*=", b"utf-8'en'", b"no-such-charset''%ff", b'"', b"\\", b"=", b"authEnveloped-data", b"\r\n", b"\r\n ", b"\n",
     b"\r", b"=?utf-8?q?x?=", b"base64", b"\xff\xfe", b"\0", b"message/rfc822", b"binary"]
)  # fmt: skip


@given(st.lists(_pieces, max_size=25).map(b"".join))
def test_no_content_type_breaks_the_reader(text: bytes) -> None:
    for read in (mime.is_sealed, mime.sealed_content, mime.unwrap, mime.without_hidden_fields):
        try:
            read(text + b"\r\n\r\nbody")
        except RelayError:
            continue


# What changes places


def test_swapped_recipients_open_or_not_but_never_to_something_else(opened: Open) -> None:
    keys = CASES["aes-plain"]
    other = cms.KEKRecipient(b"key-1", parts.kek("key-2").wrapped_cek, parts.ATTRIBUTE)
    with pytest.raises(CannotOpen):
        opened(parts.gcm(parts.PAYLOAD, other), keys)
    both = parts.gcm(parts.PAYLOAD, parts.kek("key-2"), parts.kek())
    with pytest.raises(BadStructure, match="level aes has one"):
        opened(both, keys)
    swapped = trees.changed(both, trees.RECIPIENTS, _swapped_inside)
    with pytest.raises(BadStructure, match="recipientInfos"):  # DER orders a SET
        opened(swapped, keys)


def test_the_recipients_of_another_message_do_not_open_it(opened: Open) -> None:
    for names in (("pqc-plain", "pqc+aes-plain"), ("rsa-plain", "pqc-plain"), ("aes-plain", "rsa-plain")):
        first, second = (CASES[name] for name in names)
        theirs = trees.parsed(second.content)[1][1][1][0][1][1]  # type: ignore[index]
        mixed = trees.changed(first.content, trees.RECIPIENTS, lambda _, new=theirs: [cast(Node, new)])  # type: ignore[misc]
        _nothing_but_the_original(opened, mixed, first)


# Attacks


def _element(tag: int, *contents: bytes) -> bytes:
    inside = b"".join(contents)
    return header(tag, len(inside)) + inside


def _nested(depth: int) -> bytes:
    nested = b""
    for _ in range(depth):
        nested = _element(0x30, nested)
    return nested


BIG_INTEGER = _element(2, b"\x7f" * 100_000)
PARAMETERS = (*trees.ALGORITHM, 1)
AES_PLAIN, OTP_PLAIN = CASES["aes-plain"].content, CASES["otp-two-keys"].content
CHUNK = b"\x04\x01x"


def _chunked(number: int) -> bytes:
    tree = trees.parsed(AES_PLAIN)
    version, infos, encrypted, tag = cast(Any, tree)[1][1][1][0][1]
    kind, algorithm, _ = encrypted[1]
    end = b"\0\0"
    content = b"\x30\x80" + trees.encoded(kind) + trees.encoded(algorithm) + b"\xa0\x80" + CHUNK * number + end + end
    data = b"\x30\x80" + trees.encoded(version) + trees.encoded(infos) + content + trees.encoded(tag) + end
    return b"\x30\x80" + trees.encoded(cast(Any, tree)[1][0]) + b"\xa0\x80" + data + end + end


def _many(der: bytes, path: tuple[int, ...], element: Node, number: int) -> bytes:
    return trees.changed(der, path, lambda node: [(node[0], trees.encoded(element) * number)])


ENVELOPED: dict[str, Callable[[], bytes]] = {
    "indefinite lengths nested 1,000 deep": lambda: b"\x30\x80" * 1000 + b"\0\0" * 1000,
    "definite lengths nested 1,000 deep": lambda: _nested(1000),
    "a million one-byte chunks": lambda: _chunked(1_000_000),
    "an outer length of 2 GB": lambda: b"\x30\x84\x7f\xff\xff\xff" + AES_PLAIN[4:] + bytes(MIB),
    "a ciphertext of 2 GB": lambda: AES_PLAIN[:-30] + b"\x80\x84\x7f\xff\xff\xff" + bytes(MIB),
    "a content type of 1 MiB": lambda: trees.put(AES_PLAIN, (0,), _element(6, b"\x81" * MIB + b"\x01")),
    "a content type of a million arcs": lambda: trees.put(AES_PLAIN, (0,), _element(6, b"\x2a" + b"\x01" * 1_000_000)),
    "an algorithm of 1 MiB": lambda: trees.put(AES_PLAIN, (*trees.ALGORITHM, 0), _element(6, b"\x81" * MIB + b"\x01")),
    "a version of 800,000 bits": lambda: trees.put(AES_PLAIN, trees.VERSION, BIG_INTEGER),
    "a recipient's version of 100,000 bits": lambda: trees.put(
        AES_PLAIN, (*trees.RECIPIENTS, 0, 0), _element(2, b"\x7f" * 12_500)
    ),
    "a pad's version of 800,000 bits": lambda: trees.put(OTP_PLAIN, (*PARAMETERS, 0), BIG_INTEGER),
    "a compression of 800,000 bits": lambda: trees.put(OTP_PLAIN, (*PARAMETERS, 4), BIG_INTEGER),
    "two million key_IDs": lambda: _many(OTP_PLAIN, (*PARAMETERS, 5), (0x0C, b"a"), 1_900_000),
    "key_IDs all over": lambda: _many(OTP_PLAIN, (*PARAMETERS, 5), (0x05, b""), 1_900_000),
    "a million recipients": lambda: _many(AES_PLAIN, trees.RECIPIENTS, (0x05, b""), 1_000_000),
    "a key_ID with a line end": lambda: trees.put(OTP_PLAIN, (*PARAMETERS, 5, 0), b"\x0c\x05pad\r\n"),
    "CBC": lambda: parts.replaced(AES_PLAIN, "060960864801650304012e", "060960864801650304012a"),
    **{
        f"a tag of {length} octets": lambda length=length: trees.put(AES_PLAIN, trees.TAG, _element(4, bytes(length)))  # type: ignore[misc]
        for length in range(4, 16)
    },
}  # fmt: skip


def _signed() -> bytes:
    return cms.encode_signed(parts.signed(parts.PAYLOAD, person("alice"), cms.SignatureScheme.ML_DSA_87_P384))


SIGNED: dict[str, Callable[[], bytes]] = {
    "two million certificates": lambda: _many(_signed(), (1, 0, 3), (0x05, b""), 2_000_000),
    "three thousand signers": lambda: trees.doubled(_signed(), trees.SIGNER, 3000),
    "a million empty signers": lambda: _many(_signed(), (1, 0, 4), (0x30, []), 1_000_000),
    "many signed attributes": lambda: _many(_signed(), (*trees.SIGNER, 3), (0x30, [(6, b"\x2a"), (0x31, [])]), 200_000),
    "a version of 800,000 bits": lambda: trees.put(_signed(), (*trees.SIGNER, 0), BIG_INTEGER),
    "indefinite lengths nested 1,000 deep": lambda: b"\x30\x80" * 1000 + b"\0\0" * 1000,
    "no SignedData": lambda: AES_PLAIN,
}

HEADERS: dict[str, bytes] = {
    "a header of 400,000 fields": b"a:b\r\n" * 400_000 + b"\r\n",
    "one field folded 500,000 times": b"Content-Type: x\r\n" + b" y\r\n" * 500_000 + b"\r\n",
    "a million lines of CR": b"\r\r" * 1_000_000,
    "two million lines of LF": b"\n" * 2_000_000,
}


def test_each_attack_on_the_opener_is_a_typed_error_within_100_ms_and_64_mib(opened: Open) -> None:
    for name, attack in ENVELOPED.items():
        content = attack()
        case = CASES["otp-two-keys" if OTP_PLAIN[:30] in content else "aes-plain"]
        _refused(name, content, cms.decode_enveloped)
        _opens_nothing(opened, content, case)


@pytest.mark.parametrize("name", SIGNED)
def test_each_attack_on_signed_data_is_a_typed_error_within_100_ms_and_64_mib(name: str) -> None:
    _refused(name, SIGNED[name](), cms.decode_signed)


@pytest.mark.parametrize("name", HEADERS)
def test_each_attack_on_the_header_is_a_typed_error_within_100_ms_and_64_mib(name: str) -> None:
    for read in (mime.is_sealed, mime.sealed_content, mime.unwrap, mime.without_hidden_fields):
        _refused(name, HEADERS[name], read, (BadStructure, MalformedMessage))


@pytest.mark.parametrize("size", [1000, MIB, 60 * MIB, 1000 * MIB])
def test_a_compressed_bomb_of_any_size_is_a_typed_error_within_64_mib(size: int) -> None:
    compressor = zlib.compressobj(level=9, wbits=-15)
    piece = compressor.compress(bytes(min(MIB, size))) + compressor.flush(zlib.Z_FULL_FLUSH)  # it needs none before it
    bomb = piece * max(1, size // MIB) + compressor.flush()
    if size <= MIB:
        assert decompress(bomb) == bytes(size)
    else:
        _refused(f"a bomb of {size} octets", bomb, decompress)


def test_layers_nested_100_deep_are_refused_after_the_first_few(opened: Open) -> None:
    layer = parts.PAYLOAD
    for _ in range(100):
        layer = parts.entity("authEnveloped-data", parts.gcm(layer, parts.kek()))
    with pytest.raises(BadStructure, match="inside a layer of aes"):
        opened(parts.gcm(layer, parts.kek()), CASES["aes-plain"])


async def test_what_compresses_too_well_to_be_opened_is_sealed_uncompressed() -> None:
    payload = bytes(3 * MIB)
    assert len(payload) > MAX_EXPANSION * len(compress(payload))
    keys = MemoryKeys(pad_key=MIB)
    sealed = await OneTimePad(compression=True).seal(payload, Parties("2", "1", "bob"), keys)
    enveloped = cms.decode_enveloped(sealed.der)
    assert isinstance(enveloped.content, cms.PadContent)
    assert enveloped.content.compression == 0
    assert (await OneTimePad().open(enveloped, Opening(keys.issued))).payload == payload
    assert MAX_BOUND_OCTETS <= 32 * MIB


def test_base64_is_read_in_pieces_as_it_would_be_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mime, "PIECE_OCTETS", 8)
    choose = random.Random(1)
    head = b"Content-Transfer-Encoding: base64\r\n\r\n"
    for _ in range(3000):
        text = base64.b64encode(choose.randbytes(choose.randrange(30)))
        for _ in range(choose.randrange(3)):
            place = choose.randrange(len(text) + 1)
            text = text[:place] + choose.choice([b"\r\n", b" ", b"=", b"A", b"*"]) + text[place:]
        try:
            expected: bytes | None = pybase64.b64decode(text.translate(None, b"\r\n "), validate=True)
        except ValueError:
            expected = None
        try:
            assert mime.sealed_content(head + text) == expected, text
        except BadStructure:
            assert expected is None, text


def _refused(
    name: str, message: bytes, read: Callable[[bytes], object], errors: tuple[type[RelayError], ...] = (BadStructure,)
) -> None:
    """A typed error, within 100 ms (more on a machine that is slow just now) and 64 MiB above the message."""
    reference = _seconds(lambda: sum(range(1_000_000)))
    with pytest.raises(errors):
        read(message)
    took = _seconds(lambda: _ignoring(read, message))
    assert took < 0.1 * max(1.0, reference / 0.02), (name, took)
    tracemalloc.start()
    try:
        _ignoring(read, message)
        assert tracemalloc.get_traced_memory()[1] < 64 * MIB, name
    finally:
        tracemalloc.stop()


def _ignoring(read: Callable[[bytes], object], message: bytes) -> None:
    try:
        read(message)
    except RelayError:
        return


def _seconds(work: Callable[[], object]) -> float:
    """Processor time, the best of two."""
    times = []
    for _ in range(2):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)
