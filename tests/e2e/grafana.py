"""What `examples/observability` provisions, and Grafana's macros and variables in its queries."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import yaml

from tests.docs.blocks import ROOT

FOLDER = ROOT / "examples" / "observability"
PROVISIONING = FOLDER / "grafana" / "provisioning"
DASHBOARDS = {
    path.name: json.loads(path.read_text()) for path in sorted((FOLDER / "grafana" / "dashboards").glob("*.json"))
}

# As in Grafana: the arguments end at the first bracket, so there can be none in them.
_MACRO = re.compile(r"\$(__\w+)\(([^)]*)\)")
_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Query:
    """A query of a panel, of an alert or of a variable. `where` names it."""

    where: str
    text: str
    time_series: bool = False

    @property
    def sql(self) -> str:
        """For the last day, and all types."""
        return _MACRO.sub(
            _expand, self.text.replace("$__interval", f"{_SECONDS}s").replace("${agent_type:regex}", ".+")
        )

    @property
    def promql(self) -> str:
        """For a server that scrapes each second, and all types."""
        ranges = self.text.replace("$__rate_interval", "10s").replace("$__range", "1h")
        return ranges.replace("$agent_type", ".+")


def _expand(macro: re.Match[str]) -> str:
    first, *_ = arguments = [argument.strip() for argument in macro[2].split(",")]
    if macro[1] == "__timeFilter":
        now = datetime.now(UTC)
        return f"{first} BETWEEN '{(now - timedelta(days=1)).isoformat()}' AND '{now.isoformat()}'"
    if macro[1] == "__timeGroupAlias":
        assert arguments[1:] == [f"{_SECONDS}s"], macro[0]
        return f'floor(extract(epoch from {first})/{_SECONDS})*{_SECONDS} AS "time"'
    raise AssertionError(f"an unknown macro: {macro[0]}")


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Its panels, without the headings of rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def targets(source: str) -> Iterator[Query]:
    """The queries of all panels for a data source."""
    for name, dashboard in DASHBOARDS.items():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                if target["datasource"]["uid"] == source:
                    text = target.get("rawSql") or target.get("expr") or target["query"]
                    where = f"{name}: {panel['title']} {target['refId']}"
                    yield Query(where, text, target.get("format") == "time_series")


def variables(source: str) -> Iterator[Query]:
    """The queries of all variables for a data source."""
    for name, dashboard in DASHBOARDS.items():
        for variable in dashboard["templating"]["list"]:
            if variable["datasource"]["uid"] == source:
                yield Query(f"{name}: variable {variable['name']}", variable["query"])


def provisioned(path: str) -> dict[str, Any]:
    """A file of the provisioning."""
    return dict(yaml.safe_load((PROVISIONING / path).read_text()))


def data_sources() -> dict[str, str]:
    """The type of each, by its uid."""
    return {one["uid"]: one["type"] for one in provisioned("datasources/datasources.yaml")["datasources"]}


def alerts() -> dict[str, dict[str, Any]]:
    """The rules by their uid."""
    rules = [rule for group in provisioned("alerting/rules.yaml")["groups"] for rule in group["rules"]]
    found = {rule["uid"]: rule for rule in rules}
    assert len(found) == len(rules)
    return found


def alert_query(rule: dict[str, Any]) -> tuple[str, Query, float]:
    """The data source, the query, and the threshold above which the rule fires."""
    query, condition = rule["data"]
    model = query["model"]
    (threshold,) = condition["model"]["conditions"][0]["evaluator"]["params"]
    return query["datasourceUid"], Query(rule["title"], model.get("rawSql") or model["expr"]), float(threshold)
