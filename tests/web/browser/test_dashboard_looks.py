"""The list and the detail look as in the kept screenshots, in both schemes, at three widths.

`AGENTEXEC_TEST_KEEP_SCREENSHOTS=1 pytest tests/web/browser/test_dashboard_looks.py` keeps new ones: look at them.
"""

import io
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Literal

import pytest
from PIL import Image, ImageChops
from playwright.sync_api import Browser, Page, expect
from sqlalchemy.orm import Session

from tests.databases import Database
from tests.docs.blocks import ROOT
from tests.web.browser.conftest import Server, log_of

KEPT = Path(__file__).with_name("screenshots")
KEEP = bool(os.environ.get("AGENTEXEC_TEST_KEEP_SCREENSHOTS"))
NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
VISIBLE = 40
MOST_DIFFERENT = 0.01
"""Share of the pixels: another release of the browser or of a font draws edges another way."""

pytestmark = [pytest.mark.one_python, pytest.mark.parametrize("database", ["sqlite"], indirect=True)]


@pytest.fixture
def history(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The day of history of `make dashboard`, which has ended at noon."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "examples"), *sys.path])
    from live_history import past

    with Session(database.engine) as session:
        session.add_all(past(Random(4), 120, NOON))
        session.commit()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page whose clock stands at noon."""
    context = browser.new_context(reduced_motion="reduce", timezone_id="UTC", locale="en-US")
    page = context.new_page()
    page.clock.set_fixed_time(NOON)
    yield page
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 1024, 375])
def test_looks(history: None, server: Server, page: Page, width: int, scheme: Literal["light", "dark"]) -> None:
    """The list, and the detail of the first activity that has failed."""
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(server.url)
    expect(page.get_by_role("table", name="Activities")).to_be_visible()
    expect(page.get_by_role("button", name="Error").first).to_contain_text("1")  # the counts have come
    assert_looks(page, f"list-{width}-{scheme}")
    page.get_by_role("button", name="Error").first.click()
    failed = page.get_by_role("table", name="Activities").get_by_role("link", name="research_company").first
    expect(page.get_by_role("table", name="Activities").get_by_text("Complete")).to_have_count(0)
    failed.click()
    expect(log_of(page).locator(".log-row").first).to_be_visible()
    page.wait_for_timeout(300)
    assert_looks(page, f"detail-{width}-{scheme}")


def assert_looks(page: Page, name: str) -> None:
    """Compare the page with the kept screenshot of that name."""
    path = KEPT / f"{name}.png"
    seen = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    if KEEP:
        KEPT.mkdir(exist_ok=True)
        seen.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
        return
    kept = Image.open(path).convert("RGB")
    assert seen.size == kept.size
    differences = ImageChops.difference(seen, kept).convert("L").histogram()
    share = sum(differences[VISIBLE:]) / (seen.width * seen.height)
    if share > MOST_DIFFERENT:
        seen.save(Path(os.environ.get("TMPDIR", "/tmp")) / f"{name}.png")
    assert share <= MOST_DIFFERENT, f"{name}: {share:.1%} of the pixels differ from {path.relative_to(ROOT)}"
