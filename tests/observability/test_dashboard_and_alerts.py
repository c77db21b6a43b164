"""The dashboard and the alert rules ask for nothing but what `/metrics` has."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from tests.conftest import StartBroker
from tests.observability.scrape import Scrape, scrape
from token_broker.simulator import RunningSimulator

ROOT = Path(__file__).parents[2]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "infra/grafana-dashboard.json").read_text(encoding="utf-8"))
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "infra/alerts.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
# Labels that Prometheus, or the histogram itself, adds.
ADDED_LABELS = {"instance", "job", "le"}


def dashboard_queries() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    yield from (annotation["expr"] for annotation in DASHBOARD["annotations"]["list"])


def parsed(query: str) -> Any:
    """The query's tree; Grafana's own variables stand for a range and a pattern."""
    return promql_parser.parse(query.replace("$__rate_interval", "5m").replace("$instance", ".*"))


def selectors(node: Any) -> Iterator[Any]:
    """Every vector that the query selects."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
        return
    for name in ("expr", "lhs", "rhs", "vs", "vector_selector", "selector"):
        if (child := getattr(node, name, None)) is not None:
            yield from selectors(child)
    for child in getattr(node, "args", None) or ():
        yield from selectors(child)


@pytest.fixture
async def seen(azure: RunningSimulator, start_broker: StartBroker) -> Scrape:
    """What a broker shows that has minted once, and failed to at each strategy."""
    broker = await start_broker(azure)
    await broker.plan()
    azure.set_faults({"match": "/", "fault": "status", "code": 500})
    await broker.plan()
    await broker.token({"agent_id": "nobody"})
    return await scrape(broker.client)


def test_query_tree_is_walked_completely() -> None:
    query = (
        'sum(rate(a{x="1"}[5m])) / (b > 3) and absent(c) or histogram_quantile(0.9, sum by (le) (rate(d_bucket[1h])))'
    )
    assert [vector.name for vector in selectors(parsed(query))] == ["a", "b", "c", "d_bucket"]


@pytest.mark.parametrize("source", ["dashboard", "alerts"])
async def test_queries_use_existing_metrics_and_labels(source: str, seen: Scrape) -> None:
    queries = list(dashboard_queries()) if source == "dashboard" else [rule["expr"] for rule in RULES]
    assert len(queries) > 20
    known = _labels_by_metric(seen)
    for query in queries:
        found = list(selectors(parsed(query)))
        assert found, query
        assert len(found) == len(re.findall(r"(?:token_broker|process)[_:][a-z]", query)), f"overlooked in {query}"
        for vector in found:
            assert vector.name in seen.names | RECORDED, query
            labels = {matcher.name for matcher in vector.matchers.matchers}
            assert labels <= known.get(vector.name, labels) | ADDED_LABELS, query


def _labels_by_metric(seen: Scrape) -> dict[str, set[str]]:
    known: dict[str, set[str]] = {}
    for name, labels in seen.samples:
        known.setdefault(name, set()).update(label for label, _ in labels)
    return known


async def test_queries_use_label_values_that_occur(seen: Scrape) -> None:
    """A misspelt value makes an alert that never fires."""
    for query in [*dashboard_queries(), *(rule["expr"] for rule in RULES)]:
        for vector in selectors(parsed(query)):
            for matcher in vector.matchers.matchers:
                if matcher.name in ADDED_LABELS or matcher.name == "status":
                    continue
                occurring = {
                    value
                    for name, labels in seen.samples
                    if name == vector.name
                    for label, value in labels
                    if label == matcher.name
                }
                for value in matcher.value.split("|"):
                    assert value in occurring, f"{matcher.name}={value} in {query}"


def test_alerts_have_severity_and_runbook() -> None:
    runbook = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
    anchors = {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", runbook, re.MULTILINE)}
    names = [alert["alert"] for alert in ALERTS]
    assert len(names) == len(set(names)) > 10
    for alert in ALERTS:
        assert alert["labels"]["severity"] in {"page", "ticket"}
        assert alert["annotations"].keys() == {"summary", "description", "runbook"}
        file, _, anchor = alert["annotations"]["runbook"].partition("#")
        assert (file, anchor) == ("docs/runbook.md", alert["alert"].lower())
        assert anchor in anchors, f"the runbook does not know {alert['alert']}"


def test_burn_rates_are_those_of_the_aim() -> None:
    """99.99 % allows 0.0001; a 30-day budget is spent in 30/14.4, 30/6 and 30/3 days."""
    factors = {
        float(factor) for alert in ALERTS for factor in re.findall(r"> \(?([\d.]+) \* 0\.0001", str(alert["expr"]))
    }
    assert factors == {14.4, 6, 3}
    for record in (rule for rule in RULES if "record" in rule):
        window = record["record"].removeprefix("token_broker:").partition("_failures:ratio_rate")[2]
        assert str(record["expr"]).count(f"[{window}]") == 2


def test_no_panel_lies_on_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def labels_on_the_page() -> dict[str, set[str]]:
    """The labels of each metric in docs/observability.md, by the name or `…end` that its row has."""
    page = (ROOT / "docs/observability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`(?:token_broker_|…)[^|]*) \|([^|]*)\|", page, re.MULTILINE)
    return {
        name: set(re.findall(r"`(\w+)`", labels)) for names, labels in rows for name in re.findall(r"`([^`]+)`", names)
    }


async def test_page_has_every_metric_and_its_labels(seen: Scrape) -> None:
    listed = labels_on_the_page()
    told = {name: labels - {"le"} for name, labels in _labels_by_metric(seen).items()}
    for name in seen.names:
        base = re.sub(r"_(bucket|sum|count|created)$", "", name)
        if base.startswith("token_broker_"):
            rows = [row for row in listed if row == base or (row.startswith("…") and base.endswith(row[1:]))]
            assert any(told.get(name, set()) <= listed[row] for row in rows), name
