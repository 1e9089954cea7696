"""CONTRIBUTING.md, *The way of a call*: each hop names functions that are in the file it names."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.docs.blocks import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTION = PAGE[PAGE.index("## The way of a call") : PAGE.index("### How far it is")]
HOP = re.compile(r"^ {4,}(?P<file>[\w/]+\.py): (?P<names>[\w.]+(?:, [\w.]+)*)(?:  |$)", re.MULTILINE)
EXPORTERS = ROOT / "exporters" / "agentexec_otel_exporters"


@cache
def defined_in(path: Path) -> frozenset[str]:
    """Functions, classes and names of a module, those of its classes, and functions in functions."""
    return frozenset(_names(ast.parse(path.read_text(encoding="utf-8")).body))


def _names(body: list[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
            owner = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
            yield from (f"{owner}{name}" for name in _names(node.body))
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def missing_in(file: str, names: str) -> Iterator[str]:
    """A name without its class, behind another of the same class, is that class's."""
    folder = EXPORTERS if file.startswith("sql/") else ROOT / "agentexec_otel"
    defined, owner = defined_in(folder / file), ""
    for name in names.split(", "):
        if "." in name:
            owner = f"{name.rpartition('.')[0]}."
        if name not in defined and f"{owner}{name}" not in defined:
            yield f"{file}: {name}"


def test_hops_are_there() -> None:
    """The lists follow the code."""
    assert [one for hop in HOP.finditer(SECTION) for one in missing_in(hop["file"], hop["names"])] == []


def test_every_line_is_a_hop() -> None:
    """No indented line is left out because it is written in another way."""
    lines = re.findall(r"^ {4,}\S.*$", SECTION, re.MULTILINE)
    assert [line for line in lines if not HOP.match(line)] == []
