"""The OpenAPI document: complete, with examples that are right, and stable names."""

import json
from collections.abc import Iterator
from typing import Any, cast

import pytest
from ag_ui.core import Event
from fastapi import FastAPI
from jsonschema import Draft202012Validator
from pydantic import TypeAdapter

import agentexec_otel as ax

pytestmark = pytest.mark.one_python

OPERATIONS = [
    "cancel_activities_cancel_post",
    "cancel_activity_activities__agent_id__cancel_post",
    "follow_activity_activities__agent_id__events_get",
    "follow_list_events_get",
    "get_activity_activities__agent_id__get",
    "get_logs_activities__agent_id__logs_get",
    "get_session_session_get",
    "get_stats_stats_get",
    "join_run_activities__agent_id__agui_post",
    "list_activities_activities_get",
    "retry_activities_retry_post",
    "retry_activity_activities__agent_id__retry_post",
]


def document(*prefixes: str) -> dict[str, Any]:
    """The document of an application with the router at these places."""
    app = FastAPI()
    for prefix in prefixes:
        app.include_router(ax.web.router(authorize=ax.web.public, on_retry=print), prefix=prefix)
    return app.openapi()


DOCUMENT = document("")


def operations(of: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each operation of a document."""
    for path in of["paths"].values():
        yield from path.values()


@pytest.fixture(params=OPERATIONS)
def operation(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Each operation of the router."""
    (found,) = [one for one in operations(DOCUMENT) if one["operationId"] == request.param]
    return found


def without_nulls(schema: Any) -> Any:
    """The schema, which no longer requires what may be null: FastAPI drops nulls from examples."""
    if isinstance(schema, list):
        return [without_nulls(part) for part in schema]  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(schema, dict):
        return schema
    parts = {name: without_nulls(part) for name, part in cast("dict[str, Any]", schema).items()}
    if isinstance(parts.get("required"), list):
        properties = parts.get("properties", {})
        parts["required"] = [name for name in parts["required"] if {"type": "null"} not in anyOf(properties[name])]
    return parts


def anyOf(schema: dict[str, Any]) -> list[Any]:  # noqa: N802  # as JSON Schema has it
    """The alternatives of a schema."""
    found: list[Any] = schema.get("anyOf", [])
    return found


def validate(value: object, schema: dict[str, Any]) -> None:
    """Raise if the value is not as the schema of the document has it."""
    whole = {**schema, "components": DOCUMENT["components"]}
    validator = Draft202012Validator(without_nulls(whole))
    validator.validate(value)  # pyright: ignore[reportUnknownMemberType]


def test_operation_ids() -> None:
    """They are stable, and differ from each other also if the router is included twice."""
    assert sorted(one["operationId"] for one in operations(DOCUMENT)) == OPERATIONS
    twice = [one["operationId"] for one in operations(document("/a", "/b"))]
    assert len(set(twice)) == 2 * len(OPERATIONS)


def test_operation_is_described(operation: dict[str, Any]) -> None:
    """Each operation has a summary and a description, and so has each parameter and response."""
    assert operation["summary"]
    assert operation["description"]
    for parameter in operation.get("parameters", []):
        assert parameter["description"], parameter["name"]
    assert all(response["description"] for response in operation["responses"].values())


def test_parameters_have_examples(operation: dict[str, Any]) -> None:
    """Each parameter and body has an example that its schema allows."""
    for parameter in operation.get("parameters", []):
        assert parameter["schema"]["examples"], parameter["name"]
        for example in parameter["schema"]["examples"]:
            validate(example, parameter["schema"])
    for content in operation.get("requestBody", {}).get("content", {}).values():
        (name,) = [one["$ref"].rpartition("/")[2] for one in content["schema"].get("anyOf", [content["schema"]])[:1]]
        examples = DOCUMENT["components"]["schemas"][name]["examples"]
        assert examples
        for example in examples:
            validate(example, content["schema"])


def test_responses_have_examples(operation: dict[str, Any]) -> None:
    """Each response with a body has an example that its schema allows, problems and streams, too."""
    statuses = set[str]()
    for status, response in operation["responses"].items():
        for kind, content in response.get("content", {}).items():
            if kind != "text/event-stream":
                validate(content["example"], content["schema"])
            assert kind == ("application/problem+json" if status >= "4" else kind)
            statuses.add(status)
    assert {"200", "403"} <= statuses


def test_examples_of_streams() -> None:
    """The examples of streams are events of these names, those of AG-UI as its official models have them."""
    found: dict[str, list[Any]] = {}
    for one in operations(DOCUMENT):
        stream = one["responses"]["200"]["content"].get("text/event-stream")
        if stream is not None:
            lines = stream["example"].splitlines()
            found[one["operationId"]] = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
            for line in lines:
                if line.startswith("event: "):
                    validate({"event": line[7:], "data": ""}, stream["itemSchema"])
    assert sorted(map(len, found.values())) == [2, 3, 4]
    events: TypeAdapter[Any] = TypeAdapter(Event)
    for event in found["join_run_activities__agent_id__agui_post"]:
        events.validate_python(event)
