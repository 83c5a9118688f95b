"""deploy/prometheus: alert rules and dashboard ask for numbers that there are, by labels that these have.
Standard: promtool, where it is installed (Debian's package of that name).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from relay.counting.metrics import all_metrics

HERE = Path(__file__).parents[3] / "deploy" / "prometheus"
RULES = HERE / "qumail-relay.rules.yml"
DASHBOARD = HERE / "grafana.json"
FROM_PROMETHEUS = {"instance", "job", "le"}

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def queries() -> list[str]:
    """Those of the dashboard."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def asked(text: str) -> list[tuple[str, str, set[str]]]:
    """Each selector: the metric, its suffix, and the labels that it names."""
    found = re.findall(r"(qumail_[a-z_]+)(\{[^}]*\})?", text)
    selectors = []
    for name, braces in found:
        metric = next(
            (m for m in (name, *(name.removesuffix(s) for s in ("_bucket", "_sum", "_count"))) if m in all_metrics()),
            name,
        )
        selectors.append((metric, name.removeprefix(metric), set(re.findall(r"(\w+)(?:=~|!=|!~|=)", braces))))
    return selectors


@pytest.mark.parametrize("text", [*queries(), *re.findall(r"expr: (?:>-)?\s*(.*(?:\n {10}.*)*)", RULES.read_text())])
def test_each_query_asks_for_numbers_and_labels_that_there_are(text: str) -> None:
    grouped = {label for labels in re.findall(r"(?:by|ignoring) \(([^)]*)\)", text) for label in labels.split(", ")}
    known: set[str] = set()
    for name, suffix, labels in asked(text):
        metric = all_metrics()[name]
        assert (metric.kind == "histogram") == bool(suffix), name
        assert labels <= {*metric.labels, *FROM_PROMETHEUS}, text
        known |= set(metric.labels)
    assert grouped <= known | FROM_PROMETHEUS, text


def test_each_panel_names_only_labels_that_its_query_gives() -> None:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            grouped = re.findall(r"by \(([^)]*)\)", target["expr"])
            given = set(grouped[0].split(", ")) if grouped else set(all_metrics()[asked(target["expr"])[0][0]].labels)
            assert shown <= given, panel["title"]


@needs_promtool
def test_promtool_takes_the_rules_and_their_tests(tmp_path: Path) -> None:
    subprocess.run(["promtool", "check", "rules", "--lint-fatal", RULES], check=True, capture_output=True)
    tried = HERE / "qumail-relay.test.yml"
    done = subprocess.run(["promtool", "test", "rules", tried], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    tested = set(re.findall(r"alertname: (\w+)", tried.read_text()))
    assert tested == set(re.findall(r"alert: (\w+)", RULES.read_text())), "each rule is tried"


@needs_promtool
def test_promtool_reads_each_query_of_the_dashboard(tmp_path: Path) -> None:
    rules = [{"record": f"q:{number}", "expr": text.replace("$instance", "x")} for number, text in enumerate(queries())]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", tmp_path / "rules.yml"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
