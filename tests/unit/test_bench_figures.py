"""The figures of a benchmark: medians and ratios, the JSON file that keeps them, and runs that are compared.
Standard: the file's form is written out here; a change of it changes its number.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from relay.errors import ConfigError
from tests.bench import plot
from tests.bench.cases import COMPARISONS, OTHERS, PARTS, WAYS, BenchComparison, case_name
from tests.bench.figures import KEYS_RUN_OUT, BenchFigures, met
from tests.bench.others import EXPECTED_S, MEASURED
from tests.bench.report import a_day, show
from tests.bench.result import machine

FORM = {"format", "machine", "figures", "notes", "faults", "ratios", "seconds", "rounds", "interrupted"}
RATIO = {"this", "beside", "kind", "aim", "before", "at_most", "added", "value", "lowest", "highest", "met"}


def _figures(
    aes: tuple[float, ...] = (100.0, 120.0, 500.0), bare: tuple[float, ...] = (200.0, 120.0, 100.0)
) -> BenchFigures:
    figures = BenchFigures()
    for one, other in zip(aes, bare, strict=True):
        figures.add("aes 4 KB", "mails/s", one)
        figures.add("pass-through 4 KB", "mails/s", other)
    figures.add("latency, opening", "p50 ms", 17.0)
    figures.add("latency, sink", "p50 ms", 2.0)
    figures.add("memory, one 25 MB mail above idle", "x size", 8.5)
    figures.note("otp 25 MB", KEYS_RUN_OUT)
    return figures


def _saved(figures: BenchFigures, file: Path) -> Path:
    file.write_text(json.dumps(figures.data(machine(), seconds=1.0, rounds=3, interrupted=False)))
    return file


def test_a_ratio_is_that_of_the_medians_with_the_spread_of_the_rounds() -> None:
    compared = _figures().compared(BenchComparison("aes 4 KB", "pass-through 4 KB", 1.5, ""))
    assert compared is not None
    assert (compared.value, compared.lowest, compared.highest) == (1.0, 0.5, 5.0)


def test_what_is_added_is_a_difference_and_what_has_no_other_side_stands_alone() -> None:
    added = _figures().compared(
        BenchComparison("latency, opening", "latency, sink", 4, "", "p50 ms", at_most=True, added=True)
    )
    alone = _figures().compared(BenchComparison("memory, one 25 MB mail above idle", "", 4, "", "x size", at_most=True))
    assert added is not None and added.value == 15.0
    assert alone is not None and alone.value == 8.5


@pytest.mark.parametrize(
    ("aim", "at_most", "reached"), [(1.0, False, True), (1.1, False, False), (1.1, True, True), (0.9, True, False)]
)
def test_an_aim_is_a_least_or_a_most(aim: float, at_most: bool, reached: bool) -> None:
    one = BenchComparison("aes 4 KB", "pass-through 4 KB", aim, "", at_most=at_most)
    compared = _figures().compared(one)
    assert compared is not None and met(one, compared) is reached


def test_where_a_side_was_not_measured_nothing_is_compared() -> None:
    assert _figures().compared(BenchComparison("aes 4 KB", "Postfix 4 KB", 1.5, "")) is None
    assert _figures().compared(BenchComparison("pqc 4 KB", "aes 4 KB", 1.5, "")) is None


def test_a_case_whose_keys_run_out_has_no_figures_of_the_rounds_before() -> None:
    figures = _figures()
    figures.note("aes 4 KB", KEYS_RUN_OUT)
    assert figures.median("aes 4 KB", "mails/s") is None


def test_the_file_has_its_form_and_is_read_again(tmp_path: Path) -> None:
    data = json.loads(_saved(_figures(), tmp_path / "run.json").read_text())
    assert set(data) == FORM
    assert data["format"] == 1
    assert data["ratios"] and all(set(one) == RATIO for one in data["ratios"])
    assert data["figures"]["aes 4 KB"] == {"mails/s": [100.0, 120.0, 500.0]}
    read = BenchFigures.read(tmp_path / "run.json")
    assert (read.rounds, read.notes) == (_figures().rounds, _figures().notes)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 2, "figures": {}, "notes": {}}', '{"format": 1, "figures": 1}']
)
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ConfigError, match=r"run\.json"):
        BenchFigures.read(tmp_path / "run.json")


def test_beside_an_earlier_run_its_ratios_stand_and_what_has_moved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = BenchFigures.read(_saved(_figures(aes=(50.0, 60.0, 70.0)), tmp_path / "run.json"))
    show(_figures(), "", earlier)
    shown = capsys.readouterr().out
    compared, _, moved = shown.partition("moved since the earlier run")
    assert "earlier" in compared
    assert "2.00" in moved and "aes 4 KB" in moved
    assert "pass-through" not in moved
    assert f"otp 25 MB: {KEYS_RUN_OUT}" in moved


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `bench` is not installed")
    plot.plot(_figures(), "a machine", tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="cannot be written"):
        plot.plot(_figures(), "a machine", tmp_path / "missing" / "run.png")


def test_without_its_library_a_picture_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"qumail-relay\[bench\]"):
        plot.library()


def test_what_is_compared_is_measured() -> None:
    cases = {case_name(way.name, size) for way in WAYS for size in way.sizes}
    others = ("latency, ", "memory, ", "IMAP, ", "command, ")
    for one in COMPARISONS:
        for side in (one.this, *([one.beside] if one.beside else [])):
            assert side in cases or side.startswith(others), side
    assert set(MEASURED) == set(EXPECTED_S) == set(OTHERS)
    assert {way.part for way in WAYS} | set(OTHERS) == set(PARTS)


def test_it_says_in_one_line_how_many_mails_a_day_has_room_for() -> None:
    figures = _figures(aes=(100.0, 123.0, 150.0))
    assert a_day(figures) == "", "opening was not measured"
    figures.add("opening aes 4 KB", "mails/s", 50.0)
    assert a_day(figures) == (
        "A day has room for about 11,000,000 mails of 4 KB to be sealed (level aes), or 4,300,000 to be opened."
    )
