"""The block reader itself: what it takes for a block, and what it refuses."""

import traceback
from pathlib import Path

import pytest

from tests.docs.blocks import Block, blocks_of

PAGE = """\
# Title

Text with ```` ``` ```` inside.

```python
x = 1
# not a heading
```

## Part

1. In a list:

   ```bash
   make demo
     indented
   ```

~~~json
{"a": "```"}
~~~

<!-- test: skip because it needs a key -->

```python
call_home()
```

```python title="app.py"
y = 2
```
"""


def read(text: str) -> list[Block]:
    return blocks_of(Path("page.md"), text)


def test_blocks_are_found_with_language_heading_and_line() -> None:
    """Fences of both kinds are found, also inside lists, with the heading above and the line they begin at."""
    found = [(b.language, b.heading, b.line) for b in read(PAGE)]
    assert found == [
        ("python", "Title", 6),
        ("bash", "Part", 15),
        ("json", "Part", 20),
        ("python", "Part", 26),
        ("python", "Part", 30),
    ]


def test_code_is_what_the_page_shows() -> None:
    """The code of a block is verbatim, less the indentation of the list it stands in."""
    first, bash, json, *_ = read(PAGE)
    assert first.code == "x = 1\n# not a heading\n"
    assert bash.code == "make demo\n  indented\n"
    assert json.code == '{"a": "```"}\n'


def test_skips_carry_their_reason() -> None:
    """A block is skipped by a comment right above it or by a title, and says why; the others are not skipped."""
    assert [b.skip for b in read(PAGE)] == [None, None, None, "it needs a key", "shown as the file app.py"]


def test_a_skip_without_a_reason_has_an_empty_one() -> None:
    """A bare skip comment is told apart from no comment, so that it can be refused."""
    assert [b.skip for b in read("<!-- test: skip -->\n```python\nx\n```\n```python\ny\n```\n")] == ["", None]


def test_an_open_fence_is_an_error() -> None:
    """A page whose last block is never closed is refused instead of half run."""
    with pytest.raises(ValueError, match="never closed"):
        read("```python\nx = 1\n")


def test_a_block_runs_with_top_level_await_and_tracebacks_name_the_page() -> None:
    """`await` works at the top level of a block, and a failure points at the page's own line."""
    waits, fails = read(
        "```python\nimport asyncio\nz = await asyncio.sleep(0, 5)\n```\n\n\n```python\n1 / (z - 5)\n```\n"
    )
    namespace: dict[str, object] = {}
    waits.run(namespace)
    assert namespace["z"] == 5
    with pytest.raises(ZeroDivisionError) as caught:
        fails.run(namespace)
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (last.filename, last.lineno) == ("page.md", 8)
