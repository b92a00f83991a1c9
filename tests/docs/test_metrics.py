"""docs/metrics.md and the dashboard say what ``GET /metrics`` exports."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BOARD = ROOT / "deploy" / "grafana" / "rosellm.json"
METRIC = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*:[a-zA-Z0-9_:]+")
LABELS = re.compile(r"by \(([^)]*)\)|\{\{(\w+)\}\}|([a-z_]+)=~?\"")


def writer() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "write_metrics.py"))


def test_the_page_is_up_to_date() -> None:
    found = (ROOT / "docs" / "metrics.md").read_text()
    assert found == writer()["page"](), "run: python scripts/write_metrics.py"


def board() -> Any:
    return json.loads(BOARD.read_text())


def expressions() -> Iterator[str]:
    for panel in board()["panels"]:
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            yield target["expr"]
    for variable in board()["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["definition"]
            assert variable["query"]["query"] == variable["definition"]


def exported() -> dict[str, set[str]]:
    """The labels of every sample that is exported, by its name."""
    return {
        sample.name: {*sample.labels, *("instance", "job")}
        for family in writer()["exported"]()
        for sample in family.samples
    }


def test_every_metric_of_the_dashboard_is_exported_with_the_labels_that_it_uses() -> None:
    known = exported()
    asked = [(expression, METRIC.findall(expression)) for expression in expressions()]
    assert len(asked) > 15
    for expression, names in asked:
        assert names, expression
        for name in names:
            assert name in known, f"{expression}: there is no {name}"
        for by, legend, matched in LABELS.findall(expression):
            label = by or legend or matched
            assert all(label in known[name] for name in names), f"{expression}: no label {label}"


def test_legends_name_labels_that_are_there() -> None:
    known = exported()
    for panel in board()["panels"]:
        for target in panel["targets"]:
            [name] = set(METRIC.findall(target["expr"])[:1])
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert label in known[name], target


def test_the_dashboard_is_in_order() -> None:
    panels = board()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)


def test_a_metric_that_is_not_there_would_be_noticed() -> None:
    assert METRIC.findall("rate(rosellm:nothing_total[5m])") == ["rosellm:nothing_total"]
    assert "rosellm:nothing_total" not in exported()
