"""The fenced blocks of a Markdown page: found, told apart by language, and run as they stand."""

import ast
import asyncio
import inspect
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[2]

_FENCE = re.compile(r"^(?P<indent>[ ]*)(?P<fence>`{3,}|~{3,})[ ]*(?P<language>[^\s`]*)[ ]*(?P<info>[^`]*)$")
_HEADING = re.compile(r"^#{1,6}[ ]+(?P<text>.+?)[ ]*$")
_SKIP = re.compile(r"^[ ]*<!--[ ]*test:[ ]*skip\b(?:[ ]+because)?(?P<reason>.*?)-->[ ]*$")
_TITLE = re.compile(r'\btitle="(?P<title>[^"]*)"')


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block. `line` is where its code begins, from 1; `skip` is the page's reason not to run it."""

    path: Path
    line: int
    language: str
    info: str
    heading: str
    code: str
    skip: str | None

    @property
    def where(self) -> str:
        """`docs/page.md:12`, as a traceback or an editor wants it."""
        path = self.path.relative_to(ROOT) if self.path.is_relative_to(ROOT) else self.path
        return f"{path}:{self.line}"

    def compiled(self) -> CodeType:
        """The block as code whose tracebacks name the page and its line; a top-level `await` is allowed."""
        source = "\n" * (self.line - 1) + self.code
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        return cast("CodeType", compile(source, str(self.path), "exec", flags=flags, dont_inherit=True))

    def run(self, namespace: dict[str, Any], loop: Callable[[Coroutine[Any, Any, None]], object] = asyncio.run) -> None:
        """Run the block in `namespace`; `loop` runs what a block with a top-level `await` leaves to be run."""
        result = eval(self.compiled(), namespace)
        if inspect.iscoroutine(result):
            loop(result)


def blocks_of(path: Path, text: str | None = None) -> list[Block]:
    """Every fenced block of the page, in order. Raises ValueError for a fence that is never closed."""
    lines = (path.read_text(encoding="utf-8") if text is None else text).splitlines()
    found: list[Block] = []
    heading, at = "", 0
    while at < len(lines):
        if title := _HEADING.match(lines[at]):
            heading = title["text"]
        if opening := _FENCE.match(lines[at]):
            end = _closing(lines, at + 1, opening["fence"], path)
            found.append(_block(path, lines, at, end, opening, heading))
            at = end
        at += 1
    return found


def _closing(lines: list[str], start: int, fence: str, path: Path) -> int:
    closing = re.compile(rf"^[ ]*{re.escape(fence[0])}{{{len(fence)},}}[ ]*$")
    for number in range(start, len(lines)):
        if closing.match(lines[number]):
            return number
    raise ValueError(f"{path}:{start}: this code block is never closed")


def _block(path: Path, lines: list[str], at: int, end: int, opening: re.Match[str], heading: str) -> Block:
    indent = len(opening["indent"])
    code = "".join(f"{line[indent:] if not line[:indent].strip() else line}\n" for line in lines[at + 1 : end])
    return Block(path, at + 2, opening["language"], opening["info"], heading, code, _skip_reason(lines, at, opening))


def _skip_reason(lines: list[str], at: int, opening: re.Match[str]) -> str | None:
    """The reason in the comment right above the fence, or of a `title="..."`: a file to look at, not a script."""
    before = at - 1
    while before >= 0 and not lines[before].strip():
        before -= 1
    if before >= 0 and (comment := _SKIP.match(lines[before])):
        return comment["reason"].strip()
    if title := _TITLE.search(opening["info"]):
        return f"shown as the file {title['title']}" if title["title"].strip() else ""
    return None


def pages() -> list[Path]:
    """README.md and everything in docs/, in a stable order."""
    return [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if page.is_file()]
