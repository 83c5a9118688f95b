"""The TOML reader: which file and line it blames, and what it tells the person to do about it.
Standard: TOML 1.0; every fault of a file is one line, `file:line: key: what is wrong`.
"""

from __future__ import annotations

import time
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, strategies as st
from pydantic import Field, ValidationInfo, field_validator

from relay.errors import ConfigError
from relay.files import toml


class Peer(toml.Table):
    """A nested table, as relay.toml has them."""

    domains: list[str] = Field(default_factory=list)
    port: int = 0


class Rule(toml.Table):
    """An element of an array of tables."""

    sender: str = ""
    limits: Peer | None = None


class File(toml.Table):
    """A file with everything that the reader has to find its way in."""

    level: int = 1
    note: str = ""
    mode: Literal["hold", "refuse"] = "hold"
    lists: list[list[int]] = Field(default_factory=list)
    peers: dict[str, Peer] = Field(default_factory=dict)
    named: Annotated[Peer | None, Field()] = None
    rules: list[Rule] = Field(default_factory=list)

    @field_validator("note")
    @classmethod
    def _note(cls, note: str, info: ValidationInfo) -> str:
        for word in (info.context or {}).get("forbidden", ()):
            if word in note:
                raise ValueError(word if word != "silent" else "")
        return note


def faults(text: str, **context: Any) -> list[str]:
    """What is wrong with a file called `f`."""
    with pytest.raises(ConfigError) as caught:
        toml.parse(text, File, source="f", context=context)
    return caught.value.problems


def test_a_good_file_becomes_an_immutable_value(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text('level = 2\n[peers.bob]\ndomains = ["bob.example"]\n')
    read = toml.parse(toml.read(tmp_path / "x.toml"), File, source="x.toml")
    assert read == File(level=2, peers={"bob": Peer(domains=["bob.example"])})
    with pytest.raises(ValueError, match="frozen"):
        read.level = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("levle = 1", "f:1: levle: unknown setting; did you mean 'level'?"),
        ("\n\npeers.bob.prot = 1", "f:3: peers.bob.prot: unknown setting; did you mean 'port'?"),
        ("[peers.bob]\nprot = 1", "f:2: peers.bob.prot: unknown setting; did you mean 'port'?"),
        ("peers = { bob = { prot = 1 } }", "f:1: peers.bob.prot: unknown setting; did you mean 'port'?"),
        ("[peers.port]\nprot = 1", "f:2: peers.port.prot: unknown setting; did you mean 'port'?"),
        ("[peers.domains]\nx = 1", "f:2: peers.domains.x: unknown setting; known here: domains, port"),
        ("[named]\nprot = 1", "f:2: named.prot: unknown setting; did you mean 'port'?"),
        ("[[rules]]\n[[rules]]\nsendr = ''", "f:3: rules.1.sendr: unknown setting; did you mean 'sender'?"),
        (
            "[[rules]]\n[[rules]]\n[rules.limits]\nprot = 1",
            "f:4: rules.1.limits.prot: unknown setting; did you mean 'port'?",
        ),
        (
            "[pears.bob]\nx = 1",
            "f:1: pears: unknown setting; did you mean 'peers'?",
        ),
        (
            "\n[[whens]]\nx = 1",
            "f:2: whens: unknown setting; known here: level, lists, mode, named, note, peers, rules",
        ),
    ],
)
def test_an_unknown_setting_is_an_error_with_a_suggestion(text: str, said: str) -> None:
    assert faults(text) == [said]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('note = """\nlevel = 1\n[level]\n"""\nlevel = "x"', 5),
        ("note = '''\nlevel = 1\n''' # '''\nlevel = 'x'", 4),
        ('note = """a\\"""b""""\nlevel = "x"', 2),
        ("note = '''it's'''''\nlevel = 'x'", 2),
        ('note = ""\nlevel = "x"', 2),
        ("lists = [\n  [1]\n]\nlevel = 'x'", 4),
        ("lists = [ # ]\n  [1], # [\n]\nlevel = 'x'", 4),
        ("note = '['\nlevel = 'x'", 2),
        ("# [ { \" '''\nlevel = 'x'", 2),
        ("# a\u2028b\x85c\nlevel = 'x'", 2),
        ("# a\r\n\r\nlevel = 'x'\r\n", 3),
        ("  level  =  'x'", 1),
        ("\"level\" = 'x'", 1),
        ("'level' = 'x'", 1),
    ],
)
def test_the_line_is_right_whatever_stands_before(text: str, line: int) -> None:
    assert faults(text) == [f"f:{line}: level: input should be a valid integer"]


@pytest.mark.parametrize(
    "text",
    [
        '\n[peers."a]b"]\nport = ""',
        '\n[peers . "a]b"] # c\nport = ""',
        '\n[peers]\n"a]b".port = ""',
        '\n\npeers . "a]b" . port = ""',
        '\n\npeers."a]b"."port" = ""',
        "\n\n[peers]\n'a]b'.port = ''",
    ],
)
def test_the_line_of_a_quoted_or_dotted_key_is_found(text: str) -> None:
    line = text.count("\n") + 1
    assert faults(text) == [f"f:{line}: peers.a]b.port: input should be a valid integer"]


def test_a_value_without_a_line_of_its_own_has_that_of_its_parent() -> None:
    assert faults('[peers.bob]\ndomains = [\n  "x",\n  3,\n]') == [
        "f:2: peers.bob.domains.1: input should be a valid string"
    ]
    assert toml.line_of("a = 1\n[b]\nc = 1", ("b", "c", "d")) == 3
    assert toml.line_of("a = 1\n[b]\nc = 1", ("b", "x")) == 2
    assert toml.line_of("a = 1", ("x",)) is None


def test_the_lines_of_a_text_are_looked_for_once_however_many_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = 300
    text = "".join(f"key{number} = 1\n" for number in range(keys))
    read: list[str] = []
    real = tomllib.loads

    def counted(each: str) -> dict[str, Any]:
        read.append(each)
        return real(each)

    monkeypatch.setattr(tomllib, "loads", counted)
    assert [toml.line_of(text, (f"key{number}",)) for number in range(keys)] == list(range(1, keys + 1))
    assert len(read) == keys


def test_of_very_many_faults_the_first_are_told_and_how_many_there_are_more() -> None:
    told = faults("".join(f"key{number} = 1\n" for number in range(toml.MAX_FAULTS + 7)))
    assert len(told) == toml.MAX_FAULTS + 1
    assert told[0].startswith("f:1: key0: unknown setting")
    assert told[-1] == "f: 7 more faults"


def test_all_faults_are_told_at_once() -> None:
    assert faults('level = "x"\nmode = "bounce"\nnoet = ""') == [
        "f:1: level: input should be a valid integer",
        "f:2: mode: input should be 'hold' or 'refuse'",
        "f:3: noet: unknown setting; did you mean 'note'?",
    ]


def test_nothing_is_converted_by_guess() -> None:
    assert faults('level = "1"') == ["f:1: level: input should be a valid integer"]
    assert faults("level = true") == ["f:1: level: input should be a valid integer"]
    assert faults("note = 1") == ["f:1: note: input should be a valid string"]


def test_a_validators_words_are_told_as_they_are() -> None:
    assert faults('note = "TLS"', forbidden=["TLS"]) == ["f:1: note: TLS"]
    assert faults('note = "Bad"', forbidden=["Bad"]) == ["f:1: note: bad"]
    assert faults('note = "silent"', forbidden=["silent"]) == ["f:1: note: not a value that can stand here"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("level = ", "f:1"),
        ("level = 1\nlevel = 2", "f:2"),
        ("level = 1\n[level]", "f:2"),
        ("\n= 1", "f:2"),
        ("level = " + "1" * 5000, "f: not TOML: Exceeds the limit"),
        ("lists = " + "[" * 100_000, "f: nested too deeply"),
        ("level = 1\rnote = 1", "f:1"),
    ],
)
def test_what_is_not_toml_is_an_error(text: str, said: str) -> None:
    (only,) = faults(text)
    assert only.startswith(said)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"\n\nnote = '\xe9'")
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbflevel = 1")
    (tmp_path / "big.toml").write_bytes(b"#" * (toml.MAX_FILE_BYTES + 1))
    (tmp_path / "directory.toml").mkdir()
    said = {
        "latin.toml": ":3: not UTF-8 (byte 0xe9)",
        "bom.toml": ":1: begins with a byte order mark; save it as UTF-8 without one",
        "big.toml": ": larger than 1048576 bytes; no such file needs to be",
        "directory.toml": ": cannot be read: Is a directory",
        "nowhere.toml": ": cannot be read: No such file or directory",
    }
    for name, words in said.items():
        with pytest.raises(ConfigError) as caught:
            toml.read(tmp_path / name)
        assert caught.value.problems == [f"{tmp_path / name}{words}"]


def test_a_file_of_the_greatest_size_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"#" * toml.MAX_FILE_BYTES)
    assert toml.parse(toml.read(tmp_path / "x.toml"), File, source="x.toml") == File()


def test_of_a_great_number_of_faults_the_first_are_told_and_the_others_counted() -> None:
    *told, last = faults("".join(f"levle{number} = 1\n" for number in range(5000)))
    assert told == [
        f"f:{number + 1}: levle{number}: unknown setting; did you mean 'level'?" for number in range(toml.MAX_FAULTS)
    ]
    assert last == f"f: {5000 - toml.MAX_FAULTS} more faults"
    assert len(faults("".join(f"x{number} = 1\n" for number in range(toml.MAX_FAULTS)))) == toml.MAX_FAULTS


def test_a_very_long_dotted_key_is_looked_at_only_as_deep_as_needed() -> None:
    assert faults("\nlevel" + ".a" * 150 + " = 1") == ["f:2: level: input should be a valid integer"]


@given(text=st.text() | st.text(alphabet="levl=\"'[]{}.,#\n\\ 1"))
def test_no_text_raises_anything_but_a_config_error(text: str) -> None:
    try:
        toml.parse(text, File, source="f")
    except ConfigError as error:
        assert all(problem.startswith("f:") for problem in error.problems)


def test_a_fault_is_one_short_line_whatever_the_file_says() -> None:
    for text in (
        f"{'k' * 50_000} = 1",
        f'"{"a.b" * 20_000}" = 1',
        '"two\\nlines\\u001b" = 1',
        f"level = '{'x' * 50_000}'",
    ):
        (only,) = faults(text)
        assert len(only) < 1500
        assert only.isprintable()


@pytest.mark.parametrize(
    "text", ["a." * 200_000 + "a = 1", '"a" . ' * 100_000 + "a = 1", "note = {" + "a." * 200_000 + "a = 1}"]
)
def test_a_dotted_key_of_endless_names_is_refused_at_once(text: str) -> None:
    start = time.process_time()
    (only,) = faults(text)
    assert "more than 200 names" in only
    assert time.process_time() - start < 1


def test_dots_in_values_are_no_dotted_key() -> None:
    text = f"note = '{'a.' * 1000}'\n# {'b.' * 100}\nlevel = 2"
    assert toml.parse(text, File, source="f").note == "a." * 1000
