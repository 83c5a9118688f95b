"""Names of policy files, links and directories: which count, and what is said about a wrong one.
Standard: policies/README.md.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import pytest

from relay.errors import ConfigError
from relay.policy import walk as policy_walk
from relay.policy.load import load_policies
from relay.policy.names import printable
from tests.testlib.nobody import as_nobody
from tests.testlib.policy_files import AES, PEERS, fault, faults, write


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
        (directory / "default.toml").chmod(0o200)
        (directory / "bob.example").chmod(0o200)
        with as_nobody():
            found = sorted(faults(directory))
        (directory / "bob.example").chmod(0o700)
    said = re.compile(r"([a-z.]+): cannot be read by \w+: Permission denied \(mode 0200, owner \S+\): [a-z]+ .+ (.+)")
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
