"""Links to the trace of an activity in a tracing backend."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from string import Formatter
from typing import Final
from urllib.parse import parse_qs, quote, urlsplit, urlunsplit

_MARGIN: Final = timedelta(minutes=1)  # The trace may begin before the activity, and end after it.
_FIELDS: Final = ("trace_id", "span_id", "start", "end", "start_iso", "end_iso")


def trace_url(template: str, trace_id: str, span_id: str, start: datetime, end: datetime) -> str:
    """The link to a span of a trace.

    Args:
        template: As `checked_template` takes it.
        start: When the activity began. The link asks for a minute more on either side.
    """
    first, last = (start - _MARGIN).astimezone(UTC), (end + _MARGIN).astimezone(UTC)
    values = {
        "trace_id": quote(trace_id, safe=""),
        "span_id": quote(span_id, safe=""),
        "start": int(first.timestamp() * 1_000),
        "end": int(last.timestamp() * 1_000),
        "start_iso": f"{first:%Y-%m-%dT%H:%M:%SZ}",
        "end_iso": f"{last:%Y-%m-%dT%H:%M:%SZ}",
    }
    return _expanded(template).format_map(values)


def checked_template(template: str) -> str:
    """Return the template: a URL with placeholders, or a preset such as ``jaeger:http://localhost:16686``.

    Raises:
        ValueError: It is malformed.
    """
    _expanded(template)
    return template


@lru_cache(maxsize=16)
def _expanded(template: str) -> str:
    """The URL with placeholders that a template stands for."""
    preset, _, base = template.partition(":")
    if preset in _PRESETS:
        return _of_preset(preset, _checked_url(base).rstrip("/"))
    _check_fields(template)
    return _checked_url(template)


def _check_fields(template: str) -> None:
    try:
        parts = [(field, spec, conversion) for _, field, spec, conversion in Formatter().parse(template)]
    except ValueError:
        raise ValueError(
            "a brace in it has no counterpart; write {{ and }} for braces that are no placeholder"
        ) from None
    named = {field for field, _, _ in parts if field is not None}
    if any(spec or conversion for _, spec, conversion in parts) or not named <= set(_FIELDS):
        raise ValueError(f"its placeholders can be {', '.join(f'{{{field}}}' for field in _FIELDS)}")
    if not named & {"trace_id", "span_id"}:
        raise ValueError(f"it names no trace: put {{trace_id}} into the URL, or use a preset ({', '.join(_PRESETS)})")


def _checked_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or not url.isprintable() or " " in url:
        raise ValueError(
            "write a URL with http:// or https://, or a preset with one, such as jaeger:http://localhost:16686"
            f" (presets: {', '.join(_PRESETS)})"
        )
    if "@" in parts.netloc:
        raise ValueError("it has a user or password in it, which everyone who sees the link would see")
    return url


# -- presets ----------------------------------------------------------------------------------------------------------


_PRESETS: Final = {
    "jaeger": "{base}/trace/{trace_id}?uiFind={span_id}",
    "langfuse": "{base}/traces/{trace_id}?observation={span_id}",
    "logfire": "{base}?q=trace_id%3D%27{trace_id}%27&traceId={trace_id}&spanId={span_id}"
    "&since={start_iso}&until={end_iso}",
    "mlflow": "{base}/traces?selectedEvaluationId=tr-{trace_id}",
    "phoenix": "{base}/redirects/spans/{span_id}",
    "tempo": "{base}/explore?schemaVersion=1&orgId=1&panes={panes}",
}
# What the base of a preset must have, and what it is the URL of.
_NEEDED: Final = {
    "langfuse": ("/project/", "a project, such as https://cloud.langfuse.com/project/PROJECT_ID"),
    "logfire": (
        r"^[^/?#]+//[^/?#]+/+[^/?#]+/+[^/?#]",
        "a project, such as https://logfire-us.pydantic.dev/ORGANIZATION/PROJECT",
    ),
    "mlflow": ("#/experiments/", "an experiment, such as http://localhost:5000/#/experiments/0"),
}


def _of_preset(preset: str, base: str) -> str:
    needed, what = _NEEDED.get(preset, ("", ""))
    if not re.search(needed, base):
        raise ValueError(f"{preset} needs the URL of {what}")
    template = _PRESETS[preset]
    if preset == "tempo":
        base, panes = _tempo(base)
        template = template.replace("{panes}", panes)
    # Its own braces are no placeholders.
    return template.replace("{base}", base.replace("{", "{{").replace("}", "}}"))


def _tempo(base: str) -> tuple[str, str]:
    """The URL of Grafana, and the query, for the data source that the base names."""
    parts = urlsplit(base)
    (source,) = parse_qs(parts.query).get("datasource", ["tempo"])[:1]
    grafana = urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))
    query = {
        "refId": "A",
        "datasource": {"type": "tempo", "uid": source},
        "queryType": "traceql",
        "query": "{trace_id}",
    }
    pane = {"datasource": source, "queries": [query], "range": {"from": "{start}", "to": "{end}"}}
    panes = quote(json.dumps({"agentexec": pane}, separators=(",", ":")), safe="")
    for field in ("{trace_id}", "{start}", "{end}"):
        panes = panes.replace(quote(field), field)
    return grafana, panes
