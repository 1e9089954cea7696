"""Nothing that we offer is undocumented, and nothing is offered by accident."""

import importlib
import inspect
import re
from collections.abc import Iterator
from types import ModuleType

import pytest

from agentexec_otel._config import Settings
from agentexec_otel.reasons import REASONS
from tests.docs.blocks import ROOT, blocks_of

REFERENCE = sorted((ROOT / "docs" / "reference").glob("*.md"))
MODULES = (
    "agentexec_otel",
    "agentexec_otel.activity",
    "agentexec_otel.db",
    "agentexec_otel.export",
    "agentexec_otel.reasons",
    "agentexec_otel.spool",
    "agentexec_otel.tasks",
    "agentexec_otel.tasks.celery",
    "agentexec_otel.testing",
    "agentexec_otel.web",
    "agentexec_otel_exporters.otlp",
    "agentexec_otel_exporters.sql",
)
OURS = ("agentexec_otel", "agentexec_otel_exporters")

_HEADING = re.compile(r"^#{2,} (.*)$", re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+)`")

PUBLIC = [(module, name) for module in MODULES for name in importlib.import_module(module).__all__]


def code_of_the_reference() -> str:
    """Headings, and all that is shown as code, inline or in blocks: other prose does not document a name."""
    texts = [page.read_text(encoding="utf-8") for page in REFERENCE]
    shown = [code for text in texts for code in (*_HEADING.findall(text), *_INLINE.findall(text))]
    return "\n".join([*shown, *(block.code for page in REFERENCE for block in blocks_of(page))])


CODE = code_of_the_reference()


def is_documented(pattern: str) -> bool:
    return re.search(pattern, CODE) is not None


def is_ours(value: object) -> bool:
    return str(getattr(value, "__module__", "")).split(".")[0] in OURS


def is_of(module: ModuleType, value: object) -> bool:
    owner = str(getattr(value, "__module__", None) or type(value).__module__)
    return not isinstance(value, ModuleType) and f"{owner}.".startswith(f"{module.__name__}.")


def undocumented_members(cls: type) -> Iterator[str]:
    for name, member in vars(cls).items():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        written_here = inspect.isfunction(function) and is_ours(function) and function.__qualname__ != "<lambda>"
        if written_here and not name.startswith("_") and not inspect.getdoc(getattr(cls, name)):
            yield f"{cls.__qualname__}.{name}"


@pytest.mark.parametrize("name", MODULES)
def test_all_is_sorted(name: str) -> None:
    """`__all__` is in plain code point order and names nothing twice."""
    public = importlib.import_module(name).__all__
    assert list(public) == sorted(set(public))


@pytest.mark.parametrize("name", MODULES)
def test_all_is_complete(name: str) -> None:
    """What a module or its private parts define without an underscore is in `__all__`, and `dir()` shows it."""
    module = importlib.import_module(name)
    for public in module.__all__:
        getattr(module, public)
    offered = {found for found, value in vars(module).items() if not found.startswith("_") and is_of(module, value)}
    assert offered - set(module.__all__) == set()
    assert set(module.__all__) - set(dir(module)) == set()


@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_public_name_is_in_the_reference(module: str, name: str) -> None:
    """Every public name occurs as code in docs/reference/; a function of `activity` with the namespace before it."""
    value = getattr(importlib.import_module(module), name)
    qualified = module.endswith(".activity") and inspect.isroutine(value)
    wanted = rf"\bactivity\.{name}\b" if qualified else rf"\b{name}\b"
    assert is_documented(wanted), f"{module}.{name} is not in docs/reference/*.md"


@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_public_name_has_a_docstring(module: str, name: str) -> None:
    """Every public class, its public methods and properties, and every public function says what it is for."""
    value = getattr(importlib.import_module(module), name)
    if not (inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value)):
        return
    text = value.__doc__ or ""
    generated = inspect.isclass(value) and text.startswith(f"{name}(")
    assert text.strip(), f"{module}.{name} has no docstring"
    assert not generated, f"{module}.{name} has only the docstring that dataclasses write"
    if inspect.isclass(value):
        assert list(undocumented_members(value)) == []


@pytest.mark.parametrize("field", sorted(Settings.model_fields))
def test_setting_is_in_the_configuration_reference(field: str) -> None:
    """Every setting's environment variable is in docs/reference/configuration.md, and the setting says what it does."""
    text = (ROOT / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")
    assert re.search(rf"\bAGENTEXEC_{field.upper()}\b", text), f"AGENTEXEC_{field.upper()} is not documented"
    assert Settings.model_fields[field].description, f"{field} has no description"


def test_every_reason_is_in_the_reference() -> None:
    """docs/reference/reasons.md has a row for each reason, in the order of the vocabulary."""
    text = (ROOT / "docs" / "reference" / "reasons.md").read_text(encoding="utf-8")
    assert tuple(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == REASONS
