"""`AGENTEXEC_TRACE_URL_TEMPLATE`: what it takes, and the links that it makes."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

import pytest
from pydantic import ValidationError

import agentexec_otel as ax
from agentexec_otel._model.trace_url import checked_template, trace_url

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
START = datetime(2026, 11, 30, 12, 0, 0, 250_000, UTC)
END = datetime(2026, 11, 30, 12, 5, tzinfo=UTC)


def link(template: str) -> str:
    return trace_url(checked_template(template), TRACE, SPAN, START, END)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("jaeger:http://localhost:16686", f"http://localhost:16686/trace/{TRACE}?uiFind={SPAN}"),
        ("jaeger:https://acme.example/jaeger/", f"https://acme.example/jaeger/trace/{TRACE}?uiFind={SPAN}"),
        ("phoenix:http://localhost:6006", f"http://localhost:6006/redirects/spans/{SPAN}"),
        (
            "langfuse:https://cloud.langfuse.com/project/p1",
            f"https://cloud.langfuse.com/project/p1/traces/{TRACE}?observation={SPAN}",
        ),
        (
            "mlflow:http://localhost:5000/#/experiments/0",
            f"http://localhost:5000/#/experiments/0/traces?selectedEvaluationId=tr-{TRACE}",
        ),
        (
            "https://acme.example/{{raw}}/{trace_id}/{span_id}?from={start}&to={end}",
            f"https://acme.example/{{raw}}/{TRACE}/{SPAN}?from=1796039940250&to=1796040360000",
        ),
        (
            "https://acme.example/{span_id}?from={start_iso}&to={end_iso}",
            f"https://acme.example/{SPAN}?from=2026-11-30T11:59:00Z&to=2026-11-30T12:06:00Z",
        ),
    ],
)
def test_links(template: str, expected: str) -> None:
    """With a minute more on either side, in milliseconds since 1970 or as ISO 8601."""
    assert link(template) == expected


def test_link_to_logfire() -> None:
    """The live view of the project, with the trace as its filter, in the time of the activity."""
    parts = urlsplit(link("logfire:https://logfire-us.pydantic.dev/acme/shop"))
    assert (parts.netloc, parts.path) == ("logfire-us.pydantic.dev", "/acme/shop")
    assert parse_qs(parts.query) == {
        "q": [f"trace_id='{TRACE}'"],
        "traceId": [TRACE],
        "spanId": [SPAN],
        "since": ["2026-11-30T11:59:00Z"],
        "until": ["2026-11-30T12:06:00Z"],
    }


@pytest.mark.parametrize(
    ("base", "path", "source"),
    [
        ("http://localhost:3000", "/explore", "tempo"),
        ("http://localhost:3000/grafana/?datasource=P%7B1%7D", "/grafana/explore", "P{1}"),
    ],
)
def test_link_to_tempo(base: str, path: str, source: str) -> None:
    """Grafana's Explore, with the trace from a data source that the template may name."""
    parts = urlsplit(link(f"tempo:{base}"))
    assert (parts.netloc, parts.path) == ("localhost:3000", path)
    query = parse_qs(parts.query)
    assert query["schemaVersion"] == ["1"]
    assert json.loads(query["panes"][0])["agentexec"] == {
        "datasource": source,
        "queries": [
            {
                "refId": "A",
                "datasource": {"type": "tempo", "uid": source},
                "queryType": "traceql",
                "query": TRACE,
            }
        ],
        "range": {"from": "1796039940250", "to": "1796040360000"},
    }


def test_a_row_of_another_program_cannot_change_the_link() -> None:
    """What is no id is quoted."""
    assert trace_url("https://a.example/{trace_id}", "../x?y#{z}", SPAN, START, END) == (
        "https://a.example/..%2Fx%3Fy%23%7Bz%7D"
    )


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("", "names no trace"),
        ("https://acme.example/", "names no trace: put {trace_id} into the URL"),
        ("jaeger", "write a URL with http:// or https://, or a preset"),
        ("jaeger:localhost:16686", "write a URL with http:// or https://, or a preset"),
        ("javascript:alert('{trace_id}')", "write a URL with http:// or https://, or a preset"),
        ("ftp://acme.example/{trace_id}", "write a URL with http:// or https://, or a preset"),
        ("https://acme.example/ {trace_id}", "write a URL with http:// or https://, or a preset"),
        ("https://acme.example/{trace_id", "a brace in it has no counterpart"),
        ("https://acme.example/{trace}", "its placeholders can be {trace_id}, {span_id}, {start}"),
        ("https://acme.example/{trace_id.__class__}", "its placeholders can be"),
        ("https://acme.example/{trace_id!r}", "its placeholders can be"),
        ("https://acme.example/{trace_id:>99}", "its placeholders can be"),
        ("https://acme.example/{}", "its placeholders can be"),
        ("https://me:secret@acme.example/{trace_id}", "a user or password"),
        ("phoenix:https://me:secret@acme.example", "a user or password"),
        ("langfuse:https://cloud.langfuse.com", "langfuse needs the URL of a project"),
        ("logfire:https://logfire-us.pydantic.dev/acme", "logfire needs the URL of a project"),
        ("logfire:https://logfire-us.pydantic.dev?back=/acme/shop", "logfire needs the URL of a project"),
        ("mlflow:http://localhost:5000", "mlflow needs the URL of an experiment"),
    ],
)
def test_a_malformed_template_is_refused(template: str, complaint: str) -> None:
    """With one sentence that says what is wrong, also where it is assigned."""
    with pytest.raises(ValueError, match=r".") as caught:
        checked_template(template)
    assert complaint in str(caught.value)
    with pytest.raises(ValidationError):
        ax.CONF.trace_url_template = template


def test_a_malformed_variable_is_one_sentence_at_the_import() -> None:
    """It names the variable, without a password in it."""
    variables = {"AGENTEXEC_TRACE_URL_TEMPLATE": "https://me:secret@acme.example/{trace_id}"}
    done = subprocess.run(
        [sys.executable, "-c", "import agentexec_otel"],
        env=dict(os.environ) | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.splitlines()[-1] == (
        "agentexec_otel._errors.ConfigurationError: AGENTEXEC_TRACE_URL_TEMPLATE='https://…@acme.example/{trace_id}'"
        " cannot be used: it has a user or password in it, which everyone who sees the link would see"
    )
    assert "secret" not in done.stderr
