"""Policy files: which one decides, what may stand in them, and what is said about a wrong one.
Standard: tests/data/decisions.toml, a table that an administrator can read, and policies/README.md.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
import timeit
import tomllib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import idna
import pytest
from hypothesis import given, strategies as st

from relay.audit.entries import AddressHash
from relay.errors import ConfigError, PolicyHolds, RelayError
from relay.formats.mailbox import fold_domain
from relay.levels import LEVELS, NAMES
from relay.policy import expected, walk as policy_walk
from relay.policy.conditions import ON_RECIPIENTS
from relay.policy.decide import Decision, PolicySet
from relay.policy.file import Policy
from relay.policy.floors import Floor
from relay.policy.load import PolicyFolder, load_policies
from relay.policy.names import candidates, parse_address, printable, scope_of
from relay.policy.rules import CONDITIONS, When
from relay.store.secret import SiteSecret
from tests.testlib.long import sized
from tests.testlib.nobody import as_nobody

POLICIES = Path(__file__).parents[3] / "policies"
TABLE = tomllib.loads((Path(__file__).parents[2] / "data" / "decisions.toml").read_text(encoding="utf-8"))
PEERS = {"bob": ["bob.example"], "carol": ["carol.example"]}
AES = 'levels = ["aes"]\n'
KNOWN = f"known: {', '.join(NAMES)}, or 1 to {len(LEVELS)}"


def write(directory: Path, files: Mapping[str, str]) -> Path:
    """Put files into a directory."""
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text, encoding="utf-8", newline="")
    return directory


def faults(directory: Path) -> list[str]:
    """What is wrong with a directory of policies, with paths as seen from there."""
    with pytest.raises(ConfigError) as caught:
        load_policies(directory, PEERS)
    return [problem.removeprefix(f"{directory}/") for problem in caught.value.problems]


def fault(directory: Path, text: str, name: str = "bob.example.toml") -> str:
    """The one thing wrong with one file."""
    (only,) = faults(write(directory, {name: text}))
    return only


def named(decision: Decision, directory: Path) -> str:
    """The name of the file that decided."""
    return str(Path(decision.source).relative_to(directory))


# --- decisions -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def without_default(tmp_path_factory: pytest.TempPathFactory) -> PolicySet:
    """The files of the table."""
    return load_policies(write(tmp_path_factory.mktemp("without"), TABLE["files"]), TABLE["peers"])


@pytest.fixture(scope="module")
def with_default(tmp_path_factory: pytest.TempPathFactory) -> PolicySet:
    """The files of the table and a default.toml."""
    files = TABLE["files"] | TABLE["with_a_default_file"]
    return load_policies(write(tmp_path_factory.mktemp("with"), files), TABLE["peers"])


def expect(policies: PolicySet, row: dict[str, Any], file: str) -> None:
    """Compare one decision with its row."""
    decision = policies.decide("alice@alice.example", row["to"])
    assert named(decision, policies.directory) == file
    assert (decision.sender, decision.recipient) == ("alice@alice.example", row["to"])
    assert decision.version == policies.version
    assert list(decision.levels) == row.get("levels", list(decision.levels))
    assert decision.peer == (None if row.get("no_peer") else row.get("peer", decision.peer))
    assert decision.quantum == row.get("quantum", decision.quantum)
    assert decision.otherwise == row.get("otherwise", decision.otherwise)


@pytest.mark.parametrize("row", TABLE["decision"], ids=lambda row: row["why"])
def test_the_table_of_decisions(without_default: PolicySet, with_default: PolicySet, row: dict[str, Any]) -> None:
    if "file" in row:
        expect(without_default, row, row["file"])
        expect(with_default, row, row["file"])
    elif "held" in row:
        for policies in (without_default, with_default):
            with pytest.raises(PolicyHolds, match=row["held"]):
                policies.decide("alice@alice.example", row["to"])
    else:
        with pytest.raises(PolicyHolds, match=r"no policy covers .* create .*default\.toml"):
            without_default.decide("alice@alice.example", row["to"])
        expect(with_default, row, "default.toml")


@pytest.mark.parametrize("recipient", ["kurt%x@bob.example", "kurt@nowhere.example", "kurt kurt@", "kurt@a..b"])
def test_why_nobody_covers_a_recipient_is_recorded_without_his_name(without_default: PolicySet, recipient: str) -> None:
    with pytest.raises(PolicyHolds, match="kurt") as held:
        without_default.decide("alice@alice.example", recipient)
    assert "kurt" not in AddressHash(SiteSecret(bytes(32))).cause(held.value)
    assert AddressHash(None).cause(held.value) == str(held.value)


def test_the_table_has_every_file_decide_something() -> None:
    deciding = {row.get("file") for row in TABLE["decision"]}
    assert set(TABLE["files"]) <= deciding
    assert len(TABLE["decision"]) >= 40


def test_a_recipient_that_no_file_covers_is_held_and_the_file_to_create_is_named(tmp_path: Path) -> None:
    policies = load_policies(write(tmp_path, {"carol.example.toml": AES}), PEERS)
    with pytest.raises(PolicyHolds) as held:
        policies.decide("", "x@bob.example")
    assert held.value.reply == "451 4.7.1 Message held by policy: no policy covers this recipient"
    assert str(tmp_path / "bob.example.toml") in str(held.value)
    assert str(tmp_path / "default.toml") in str(held.value)


def test_a_decision_names_the_line_of_the_levels(tmp_path: Path) -> None:
    text = '# levels = ["plaintext"]\notherwise = "refuse"\n\nlevels = [\n  "aes",\n]\n'
    policies = load_policies(write(tmp_path, {"default.toml": text}), PEERS)
    assert policies.decide("", "x@bob.example").line == 4


def test_the_peer_named_in_the_file_wins_over_the_owner_of_the_domain(tmp_path: Path) -> None:
    policies = load_policies(write(tmp_path, {"bob.example.toml": 'peer = "carol"\n' + AES}), PEERS)
    assert policies.decide("", "x@bob.example").peer == "carol"
    assert policies.explain("", "x@bob.example").peer_because == "bob.example.toml names it"


def test_only_plaintext_is_in_clear(without_default: PolicySet) -> None:
    assert without_default.decide("", "x@clear.example").in_clear
    assert not without_default.decide("", "secret@clear.example").in_clear


def test_a_policy_set_and_a_decision_cannot_be_changed(without_default: PolicySet) -> None:
    decision = without_default.decide("", "x@bob.example")
    with pytest.raises(dataclasses.FrozenInstanceError):
        decision.levels = ("plaintext",)  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        without_default.version = ""  # type: ignore[misc]
    with pytest.raises(TypeError):
        without_default.files["x.toml"] = without_default.files["bob.example.toml"]  # type: ignore[index]


def test_later_changes_on_disk_do_not_reach_a_loaded_set(tmp_path: Path) -> None:
    policies = load_policies(write(tmp_path, {"bob.example.toml": AES}), PEERS)
    write(tmp_path, {"bob.example.toml": 'levels = ["plaintext"]', "bob.example/x.toml": 'levels = ["otp"]'})
    assert policies.decide("", "x@bob.example").levels == ("aes",)


def test_the_version_changes_with_names_and_contents_and_nothing_else(tmp_path: Path) -> None:
    def version(name: str, files: Mapping[str, str]) -> str:
        return load_policies(write(tmp_path / name, files), PEERS).version

    one = version("one", {"bob.example.toml": AES, "default.toml": AES})
    assert re.fullmatch("[0-9a-f]{40}", one)
    assert version("same", {"default.toml": AES, "bob.example.toml": AES, "README.md": "x"}) == one
    assert version("content", {"bob.example.toml": AES + "\n", "default.toml": AES}) != one
    assert version("name", {"carol.example.toml": AES, "default.toml": AES}) != one


def test_sets_made_to_have_the_same_beginning_of_a_sum_of_digests_have_two_versions(tmp_path: Path) -> None:
    """Both were 041a2e1298dc as long as a version was that; a relay kept the first one where the second came."""
    versions = set()
    for name, one, other in (("a", 'levels=["rsa"]\n# 2069', "# 5950"), ("b", 'levels=["otp"]\n# 1391', "# 386")):
        files = {"bob.example.toml": f"{one}\n", "zz.example.toml": f'peer="bob"\nlevels=["aes"]\n{other}\n'}
        versions.add(load_policies(write(tmp_path / name, files), PEERS).version)
    assert len({version[:12] for version in versions}) == 2


def test_a_decision_takes_microseconds(without_default: PolicySet) -> None:
    runs = 2000
    seconds = timeit.timeit(lambda: without_default.decide("a@b", "x+tag@lab.carol.example"), number=runs)
    assert seconds / runs < 0.0005  # a few millionths here; the margin is for a busy machine


# --- explanations --------------------------------------------------------------------------------------


def test_an_explanation_lists_every_file_looked_for_in_order(without_default: PolicySet) -> None:
    explanation = without_default.explain("a@b", "Who+Tag@sub.closed.carol.example")
    assert [(look.file, look.step, look.exists, look.decides) for look in explanation.lookups] == [
        ("sub.closed.carol.example/who+tag.toml", "person", False, False),
        ("sub.closed.carol.example/who.toml", "person without tag", False, False),
        ("sub.closed.carol.example.toml", "domain", False, False),
        ("closed.carol.example.toml", "parent domain", True, False),
        ("carol.example.toml", "parent domain", True, True),
    ]


def test_an_explanation_is_plain_json_types(without_default: PolicySet) -> None:
    assert without_default.explain("a@b", "alice@bob.example").as_dict() == {
        "sender": "a@b",
        "recipient": "alice@bob.example",
        "version": without_default.version,
        "directory": str(without_default.directory),
        "looked_for": [
            {"file": "bob.example/alice.toml", "step": "person", "exists": True, "decides": True, "not_now": ""},
        ],
        "decision": {
            "sender": "a@b",
            "recipient": "alice@bob.example",
            "levels": ["otp"],
            "peer": "bob",
            "peer_because": "bob.example is one of its domains",
            "quantum": "preferred",
            "otherwise": "hold",
            "source": str(without_default.directory / "bob.example" / "alice.toml"),
            "line": 1,
            "version": without_default.version,
            "in_clear": False,
            "kem": ["ml-kem-1024"],
            "sign": "ML-DSA-87",
            "max_size": {},
            "impossible": None,
            "hold_for": None,
            "priority": "normal",
            "reason": "",
            "rule": 0,
            "looks_inside": False,
            "max_bounce": None,
        },
        "rules": [],
        "floors": [],
        "raised_by_floors": [],
        "held": None,
    }


def test_an_explanation_of_a_held_mail_says_why(without_default: PolicySet) -> None:
    explanation = without_default.explain("a@b", "x@elsewhere.example").as_dict()
    assert explanation["decision"] is None
    assert "no policy covers" in explanation["held"]
    assert [look["file"] for look in explanation["looked_for"]][-1] == "default.toml"


# --- properties ----------------------------------------------------------------------------------------

LABELS = st.sampled_from(["a", "b", "bob", "default", "xn--bcher-kva"])
DOMAINS = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
LOCALS = st.sampled_from(["x", "y", "x+t", "x+t+u", "+x", "default", "o'brien", ".x", "a/b", "x.toml", "ü"])
ADDRESSES = st.builds(lambda local, domain: f"{local}@{domain}", LOCALS, DOMAINS)
NASTY = st.text(alphabet=st.sampled_from("aBx.+@/\\%\"'[]<>-_ ;,:()\0\r\n\t\x7füß\u0308\u200d\ud800\u3002\uff2b2F"))


def from_files(tmp: Path, files: Mapping[str, bool]) -> PolicySet:
    """A policy set of empty meaning: names, and whether each has subdomains."""
    texts = {
        name: AES + ("subdomains = true" if subdomains and scope_of(name)[0] == "domain" else "")
        for name, subdomains in files.items()
    }
    return load_policies(write(tmp, texts), PEERS)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[dict[str, bool], str]:
    """Some files around one recipient, and the recipient."""
    recipient = draw(ADDRESSES)
    near = [name for name, _ in candidates(parse_address(recipient))]
    far = [name for name, _ in candidates(parse_address(draw(ADDRESSES)))]
    names = draw(st.lists(st.sampled_from(near + far), min_size=1, unique=True))
    return {name: draw(st.booleans()) for name in names}, recipient


@given(world=worlds())
def test_the_more_specific_file_always_wins(
    tmp_path_factory: pytest.TempPathFactory, world: tuple[dict[str, bool], str]
) -> None:
    files, recipient = world
    policies = from_files(tmp_path_factory.mktemp("world"), files)
    local, _, domain = recipient.rpartition("@")
    quoted = local.replace("'", "%27").replace("/", "%2F").replace("ü", "%C3%BC")
    quoted = "%2E" + quoted[1:] if quoted.startswith(".") else quoted
    untagged = quoted.split("+")[0] or quoted
    labels = domain.split(".")
    parents = [".".join(labels[place:]) for place in range(1, len(labels))]
    order = [f"{domain}/{quoted}.toml", f"{domain}/{untagged}.toml", f"{domain}.toml"]
    order += [f"{parent}.toml" for parent in parents if files.get(f"{parent}.toml") and parent != "default"]
    expected = next((name for name in [*order, "default.toml"] if name in files), None)
    if expected is None:
        with pytest.raises(PolicyHolds):
            policies.decide("", recipient)
    else:
        assert named(policies.decide("", recipient), policies.directory) == expected


@given(
    sender=NASTY,
    recipient=st.one_of(
        ADDRESSES, NASTY, st.text(), st.builds(lambda local, domain: f"{local}@{domain}", NASTY, DOMAINS)
    ),
)
def test_decide_and_explain_never_differ(with_default: PolicySet, sender: str, recipient: str) -> None:
    explanation = with_default.explain(sender, recipient)
    try:
        decision = with_default.decide(sender, recipient)
    except PolicyHolds as held:
        assert explanation.decision is None
        assert explanation.held == str(held)
    else:
        assert explanation.decision == decision
        assert [look.file for look in explanation.lookups if look.decides] == [named(decision, with_default.directory)]


@given(
    hostile=st.one_of(NASTY, st.text(), st.sampled_from(["bob.example/alice", "../clear.example", "%2e%2e"])),
    domain=st.sampled_from(
        ["@bob.example", "@clear.example", "@default", "@bob.example/alice", "@\uff42ob.example", ""]
    ),
)
def test_a_hostile_recipient_is_decided_by_a_file_of_its_own_domain_or_held(
    with_default: PolicySet, hostile: str, domain: str
) -> None:
    recipient = hostile + domain
    try:
        decision = with_default.decide("", recipient)
    except RelayError:
        return
    own = recipient.rpartition("@")[2]
    name = named(decision, with_default.directory)
    covered = with_default.files[name].domain
    folded = parse_address(recipient).domain
    assert folded == (own.lower() if own.isascii() else own.lower().encode("idna").decode())
    assert name == "default.toml" or folded == covered or folded.endswith("." + covered)


@given(recipient=st.one_of(ADDRESSES, st.builds(lambda local: f"{local}@bob.example", st.text(min_size=1))))
def test_every_address_has_one_file_name_and_it_leads_back(recipient: str) -> None:
    try:
        address = parse_address(recipient)
    except ValueError:
        return
    name, _ = next(candidates(address))
    assert scope_of(name) == ("person", address.domain)
    assert re.fullmatch(r"[a-z0-9._-]+/(?!\.)[a-z0-9._+%A-F-]+", name)


def characters(codes: Iterable[int]) -> Iterator[int]:
    """Those of these that are changed by folding or are no plain letters, and some of the others, which are all alike."""
    for code in codes:
        character = chr(code)
        alike = unicodedata.category(character) in ("Lo", "Cn", "Co", "Cs") and not unicodedata.combining(character)
        if not alike or unicodedata.normalize("NFKC", character).casefold() != character or code % sized(16, 1) == 0:
            yield code


def test_folding_an_address_twice_changes_nothing() -> None:
    for code in characters(range(0x20000)):
        try:
            once = parse_address(f"{chr(code)}x@a{chr(code)}.example")
        except ValueError:
            continue
        assert parse_address(f"{once.local}@{once.domain}") == once


def expect_what_the_next_hop_sees(domain: str) -> None:
    """Unless it is refused, a domain is folded as UTS 46, which other programs use, maps it."""
    try:
        ours = fold_domain(domain)
        mapped = idna.uts46_remap(domain, std3_rules=True, transitional=False)
    except (ValueError, idna.IDNAError):
        return
    labels = (each if each.isascii() else f"xn--{each.encode('punycode').decode()}" for each in mapped.split("."))
    assert ours == ".".join(labels)


@given(domain=st.text(min_size=1, max_size=8))
def test_a_domain_is_refused_or_folded_to_what_the_next_hop_sees(domain: str) -> None:
    expect_what_the_next_hop_sees(domain)


def test_every_character_in_a_domain_is_refused_or_folded_to_what_the_next_hop_sees() -> None:
    for code in characters((*range(0x80, 0x20000), *range(0xE0000, 0xE0200))):
        expect_what_the_next_hop_sees(f"b{chr(code)}b")


# --- names of files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("Bob.example.toml", "bob.example.toml"),
        ("%62ob.example.toml", "bob.example.toml"),
        ("bücher.example.toml", "xn--bcher-kva.example.toml"),
        ("b%C3%BCcher.example.toml", "xn--bcher-kva.example.toml"),
        ("Default.toml", "default.toml"),
        ("alice@bob.example.toml", "bob.example/alice.toml"),
        ("O'Brien@Bob.example.toml", "bob.example/o%27brien.toml"),
        ("bob.example/Alice.toml", "bob.example/alice.toml"),
        ("Bob.Example/alice.toml", "bob.example/alice.toml"),
        ("bob.example/%61lice.toml", "bob.example/alice.toml"),
        ("bob.example/o'brien.toml", "bob.example/o%27brien.toml"),
        ("bob.example/a%2fb.toml", "bob.example/a%2Fb.toml"),
        ("bob.example/%2E%2E.toml", "bob.example/%2E..toml"),
        ("bob.example/100%.toml", "bob.example/100%25.toml"),
        ("bob.example/müller.toml", "bob.example/m%C3%BCller.toml"),
        ("bob.example/M%C3%9CLLER.toml", "bob.example/m%C3%BCller.toml"),
        ("bob.example/mu%CC%88ller.toml", "bob.example/m%C3%BCller.toml"),
        ("bob.example/alice@bob.example.toml", "bob.example/alice%40bob.example.toml"),
    ],
)
def test_a_name_that_is_not_the_one_of_its_address_is_an_error_with_the_right_name(
    tmp_path: Path, name: str, right: str
) -> None:
    said = fault(tmp_path, AES, name)
    assert said.startswith(f"{name}: ")
    assert said.endswith(f"call it {right!r}")


@pytest.mark.parametrize(
    "name",
    [
        "bob..example.toml",
        "bob.example..toml",
        "bob example.toml",
        "bob%2Fexample.toml",
        "%00.toml",
        "bob%FF.toml",
        "bob.example/%00.toml",
        "bob.example/%FF.toml",
        "bob.example/a%0Ab.toml",
        "bob..example/alice.toml",
        "a b/alice.toml",
    ],
)
def test_a_name_that_no_address_can_have_is_an_error(tmp_path: Path, name: str) -> None:
    assert fault(tmp_path, AES, name).startswith(f"{name}: ")


def test_a_name_that_would_disturb_a_terminal_is_shown_escaped(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\x1b[2J\xff.toml")).write_text(AES)
    (only,) = faults(tmp_path)
    assert only.startswith(r"\x1b[2J\udcff.toml: ")
    assert printable(only) == only


def test_what_is_not_a_policy_is_ignored(tmp_path: Path) -> None:
    top = ["README.md", "default.toml~", "default.toml.bak", ".default.toml.swp", ".#default.toml"]
    below = [".git/config.toml", "bob.example/README", "bob.example/.x.toml", "docs/a.md"]
    files = dict.fromkeys(["#default.toml#", *top, *below], "not TOML")
    policies = load_policies(write(tmp_path, files | {"default.toml": AES}), PEERS)
    assert set(policies.files) == {"default.toml"}


def test_links_are_followed_as_in_a_mounted_volume(tmp_path: Path) -> None:
    write(tmp_path, {"..2025/default.toml": AES, "..2025/people/x.toml": AES})
    (tmp_path / "..data").symlink_to("..2025")
    (tmp_path / "default.toml").symlink_to("..data/default.toml")
    (tmp_path / "bob.example").symlink_to("..data/people")
    assert set(load_policies(tmp_path, PEERS).files) == {"default.toml", "bob.example/x.toml"}


def test_links_that_lead_nowhere_or_round_in_circles_are_errors(tmp_path: Path) -> None:
    write(tmp_path, {"default.toml": AES, "bob.example/x.toml": AES})
    (tmp_path / "gone.example.toml").symlink_to("nowhere")
    (tmp_path / "self.example.toml").symlink_to("self.example.toml")
    (tmp_path / "bob.example" / "up").symlink_to("..")
    assert sorted(faults(tmp_path)) == [
        "bob.example/up: a directory too deep; policies lie in a domain's directory",
        "gone.example.toml: cannot be read: No such file or directory",
        "self.example.toml: cannot be read: Too many levels of symbolic links",
    ]


def test_policies_too_deep_are_errors(tmp_path: Path) -> None:
    write(tmp_path, {"default.toml": AES, "org/example/alice.toml": AES})
    assert faults(tmp_path) == ["org/example: a directory too deep; policies lie in a domain's directory"]


def test_a_directory_called_like_a_file_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, {"default.toml": AES, "bob.example.toml/alice.toml": AES})
    assert faults(tmp_path) == ["bob.example.toml: a directory, but called like a file; call it after a domain"]


def test_an_ending_in_capitals_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, {"default.toml": AES, "bob.example.TOML": AES, "bob.example/x.Toml": AES})
    assert sorted(faults(tmp_path)) == [
        "bob.example.TOML: write the ending as '.toml', in small letters",
        "bob.example/x.Toml: write the ending as '.toml', in small letters",
    ]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_an_error_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "default.toml")
    assert faults(tmp_path) == ["default.toml: not a regular file; a policy is a file (or a link to one)"]


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"default.toml": AES})

    def no_permission(path: str, flags: int) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "open", no_permission)
    assert faults(tmp_path) == ["default.toml: cannot be read: Permission denied"]


def test_a_file_or_directory_without_permission_is_an_error() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        write(directory, {"default.toml": AES, "bob.example/x.toml": AES})
        (directory / "default.toml").chmod(0)
        (directory / "bob.example").chmod(0)
        with as_nobody():
            found = sorted(faults(directory))
        (directory / "bob.example").chmod(0o700)
    said = re.compile(r"([a-z.]+): cannot be read by \w+: Permission denied \(mode 0000, owner \S+\): [a-z]+ .+ (.+)")
    assert [match.groups() for match in map(said.fullmatch, found) if match] == [
        ("bob.example", f"{directory}/bob.example"),
        ("default.toml", f"{directory}/default.toml"),
    ]


def test_a_missing_or_empty_directory_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, {"README.md": ""})
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory"):
        load_policies(tmp_path / "nowhere", PEERS)
    with pytest.raises(ConfigError, match="cannot be read: Not a directory"):
        load_policies(tmp_path / "README.md", PEERS)
    with pytest.raises(ConfigError, match=r"no policy file in it; create default\.toml"):
        load_policies(tmp_path, PEERS)


def test_too_many_files_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_walk, "MAX_FILES", 3)
    files = {f"d{number}.example.toml": AES for number in range(3)}
    assert len(load_policies(write(tmp_path, files), PEERS).files) == 3
    with pytest.raises(ConfigError, match="more than 3 policy files"):
        load_policies(write(tmp_path, {"bob.example/x.toml": AES}), PEERS)


# --- what stands in files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ": levels: missing; this setting is required"),
        ("# nothing\n", ": levels: missing; this setting is required"),
        ("levels = []", ':1: levels: write a list with at least one level, for instance ["otp", "aes"]'),
        ('levels = "aes"', ':1: levels: write a list with at least one level, for instance ["otp", "aes"]'),
        ('levels = ["aess"]', ":1: levels: 'aess' is not a level; did you mean 'aes'?"),
        ('levels = ["AES"]', ":1: levels: 'AES' is not a level; did you mean 'aes'?"),
        (
            'levels = ["zip"]',
            f":1: levels: 'zip' is not a level; {KNOWN}",
        ),
        ("levels = [99]", f":1: levels: 99 is not a level; {KNOWN}"),
        ("levels = [0]", f":1: levels: 0 is not a level; {KNOWN}"),
        (
            "levels = [true]",
            f":1: levels: True is not a level; {KNOWN}",
        ),
        ("levels = [1.0]", f":1: levels: 1.0 is not a level; {KNOWN}"),
        ('levels = ["1"]', f":1: levels: '1' is not a level; {KNOWN}"),
        ("levels = [[1]]", f":1: levels: [1] is not a level; {KNOWN}"),
        ('levels = ["aes", 2]', ":1: levels: 'aes' is listed twice; leave one out"),
        (
            'otherwise = "hold"\nlevels = ["aes", "plaintext"]',
            (
                ':2: levels: "plaintext" stands alone: levels = ["plaintext"] lets this mail out in clear; '
                "leave it out to have the mail sealed"
            ),
        ),
        (AES + 'level = ["otp"]', ":2: level: unknown setting; did you mean 'levels'?"),
        (AES + '\notherwize = "hold"', ":3: otherwize: unknown setting; did you mean 'otherwise'?"),
        (
            AES + "[[rules]]\nx = 1",
            ":2: rules: unknown setting; known here: hold_for, impossible, kem, levels, max_size, otherwise, peer, priority, quantum, reason, require, sign, since, subdomains, unprotected, until, when",
        ),
        (AES + 'otherwise = "bounce"', ":2: otherwise: input should be 'hold' or 'refuse'"),
        (AES + 'quantum = "on"', ":2: quantum: input should be 'off', 'preferred' or 'required'"),
        (
            'levels = ["plaintext"]\nquantum = "required"',
            ':2: quantum: "required" contradicts levels = ["plaintext"]; leave one of them out',
        ),
        (AES + 'peer = "bobb"', ":2: peer: no peer 'bobb'; did you mean 'bob'?"),
        (AES + 'peer = "zoe"', ":2: peer: no peer 'zoe'; configured: bob, carol"),
        (AES + "peer = 1", ":2: peer: input should be a valid string"),
        (AES + 'subdomains = "yes"', ":2: subdomains: input should be a valid boolean"),
        (AES + "levels = [1]", ":2: not TOML: cannot overwrite a value"),
        ("levels = [", ":1: not TOML: invalid value"),
    ],
)
def test_a_wrong_setting_is_named_with_file_line_and_remedy(tmp_path: Path, text: str, said: str) -> None:
    heard = fault(tmp_path, text)
    heard = re.sub(r":(\d+):\d+: not TOML", r":\1: not TOML", heard)  # the column depends on the Python
    assert heard.lower() == f"bob.example.toml{said}".lower()


@pytest.mark.parametrize(("name", "scope"), [("default.toml", "default"), ("bob.example/x.toml", "person")])
def test_only_the_file_of_a_domain_has_subdomains(tmp_path: Path, name: str, scope: str) -> None:
    said = fault(tmp_path, AES + "subdomains = true", name)
    assert said == (f"{name}:2: subdomains: only for the file of a domain, and this one is for a {scope}; leave it out")


def test_bad_encodings_and_giant_files_are_errors(tmp_path: Path) -> None:
    (tmp_path / "bob.example.toml").write_bytes(b"levels = [2]\n# caf\xe9\n")
    (tmp_path / "carol.example.toml").write_bytes(b"#" * 2 * 1024 * 1024)
    (tmp_path / "default.toml").write_bytes(b"\xef\xbb\xbflevels = [2]\n")
    assert faults(tmp_path) == [
        "bob.example.toml:2: not UTF-8 (byte 0xe9)",
        "carol.example.toml: larger than 1048576 bytes; no such file needs to be",
        "default.toml:1: begins with a byte order mark; save it as UTF-8 without one",
    ]


def test_every_fault_of_every_file_is_told_at_once(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "bob.example.toml": 'levels = ["aess"]\npeer = "nobody"\nquantom = "off"\n',
            "bob.example/Alice.toml": AES,
            "default.toml": "",
            "carol.example.toml": AES,
        },
    )
    assert [said.split(": ")[0] for said in faults(tmp_path)] == [
        *("bob.example.toml:1", "bob.example.toml:2", "bob.example.toml:3"),
        *("bob.example/Alice.toml", "default.toml"),
    ]


def test_peers_that_share_a_domain_or_have_none_are_errors(tmp_path: Path) -> None:
    write(tmp_path, {"default.toml": AES})
    peers = {"bob": ["bücher.example"], "carol": ["xn--bcher-kva.example"], "dave": ["dave example"]}
    with pytest.raises(ConfigError) as caught:
        load_policies(tmp_path, peers)
    assert caught.value.problems == [
        "peer 'carol': domain 'xn--bcher-kva.example' already belongs to peer 'bob'",
        "peer 'dave': domains: 'dave example' is not a mail domain",
    ]


# --- the files that come with the relay ------------------------------------------------------------------

README = (POLICIES / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```toml\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
HEADING = r"^# (?:\w+: )?\S+\.toml\n"
FILES = re.findall(rf"^# (?:(\w+): )?(\S+\.toml)\n(.*?)(?={HEADING}|\Z)", "".join(BLOCKS), re.DOTALL | re.MULTILINE)
"""Organisation ("" for none), name and text of each file: a comment with its name stands above it."""
EXAMPLES = {file: text for organisation, file, text in FILES if not organisation}
ORGANISATIONS = [each for each in FILES if each[0]]
ROWS = re.findall(r"^\| `(\S+@\S+)` \| `(\S+\.toml)`", README, re.MULTILINE)


@pytest.mark.parametrize(("site", "other"), [("alice.example", "bob.example"), ("bob.example", "alice.example")])
def test_the_working_set_seals_for_the_other_site_at_both(site: str, other: str) -> None:
    peer = other.removesuffix(".example")
    policies = load_policies(POLICIES, {peer: [other]})
    decision = policies.decide(f"x@{site}", f"y@{other}")
    assert (decision.levels, decision.peer, decision.otherwise) == (("aes",), peer, "hold")
    assert policies.decide(f"x@{site}", "y@elsewhere.example").otherwise == "refuse"
    assert not any(file.policy.in_clear for file in policies.files.values())


def test_every_example_of_the_readme_loads(tmp_path: Path) -> None:
    assert len(BLOCKS) == README.count("```toml")
    assert all(re.match(HEADING, block) for block in BLOCKS)
    assert len({(organisation, file) for organisation, file, _ in FILES}) == len(FILES)
    policies = PolicyFolder(write(tmp_path, EXAMPLES), PEERS).read_tested()
    assert set(policies.files) == set(EXAMPLES) - {"floors.toml", "groups.toml", "tests.toml"}
    assert policies.floors
    assert policies.groups


@pytest.mark.parametrize(("recipient", "file"), ROWS)
def test_the_readme_says_which_example_decides(tmp_path: Path, recipient: str, file: str) -> None:
    policies = load_policies(write(tmp_path, EXAMPLES), PEERS)
    assert named(policies.decide("", recipient), tmp_path) == file


def test_the_readme_has_every_setting_and_every_level() -> None:
    assert len(ROWS) >= 8
    for key in Policy.model_fields:
        assert f"\n| `{key}` |" in README
    table = [(f'`"{level.name}"`', f"`{level.number}`") for level in LEVELS]
    assert re.findall(r"^\| (`\S+`) \| (`\d+`) \|", README, re.MULTILINE) == table, (
        "policies/README.md, strongest first"
    )
    assert '\n| `"plaintext"` | none |' in README


def test_the_readme_has_every_condition_and_every_key_of_a_test() -> None:
    rows = "".join(re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", README, re.MULTILINE))
    for name in (*CONDITIONS, *ON_RECIPIENTS, *expected.Test.model_fields):
        assert f"`{name}`" in rows
    for name in Floor.model_fields.keys() - When.model_fields.keys():
        assert f"`{name}" in README
