"""axe-core finds no serious fault, in either scheme, at three widths."""

from typing import Any, Literal

import pytest
from playwright.sync_api import Page, expect

from tests.docs.blocks import ROOT
from tests.web.browser.conftest import Server, Worker, log_of

AXE = ROOT / "agentexec_otel/web/ui/node_modules/axe-core/axe.min.js"
WIDTHS = (1440, 1024, 375)

pytestmark = [pytest.mark.one_python, pytest.mark.parametrize("database", ["sqlite"], indirect=True)]


def faults(page: Page) -> list[Any]:
    """What axe-core calls serious or critical."""
    page.evaluate(AXE.read_text())  # behind the page's policy, which allows no other script
    found = page.evaluate("axe.run()")
    return [
        (fault["id"], fault["help"], [node["html"][:200] for node in fault["nodes"]])
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_fault(server: Server, worker: Worker, page: Page, scheme: Literal["light", "dark"]) -> None:
    """On the empty page, the list, its help, the detail of a run and of one that has ended, and an unknown one."""
    page.emulate_media(color_scheme=scheme)
    page.goto(server.url)
    expect(page.get_by_text("ax.activity.run").first).to_be_visible()
    assert faults(page) == []
    agent_id = worker.ask("create", "Researcher", {"tenant": "acme"})
    worker.ask("update", agent_id, "Reading the archive.", 30)
    ended = worker.ask("create", "Writer")
    worker.ask("complete", ended)
    expect(page.get_by_role("link", name="Writer")).to_be_visible()
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        assert faults(page) == []
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    assert faults(page) == []
    for each in (agent_id, ended):
        page.goto(f"{server.url}activities/{each}")
        expect(log_of(page).get_by_text("Queued.").first).to_be_visible()
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            assert faults(page) == []
