"""The pages of the example `examples/fastapi_app` in a real browser."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.databases import Database
from tests.e2e.app_service import service

pytestmark = pytest.mark.one_python


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_pages(database: Database, tmp_path: Path, page: Page) -> None:
    """Research is started on the page, and seen in the dashboard while it runs and when it ends."""
    with service(tmp_path, database=database.url, pace="0.2") as (app, client):
        client.get("/")
        page.goto(app.url())
        page.get_by_label("Company").fill("Acme")
        page.get_by_role("button", name="Research").click()
        expect(page.get_by_text("The agent works on Acme.")).to_be_visible()
        (agent_id,) = [item["agent_id"] for item in client.get("/api/activities").json()["items"]]
        page.get_by_role("link", name="What the agents do").click()
        expect(page.get_by_text("Reading article")).to_be_visible()
        page.locator(f"a[href*='{agent_id}']").click()
        for found in ("Searching the archive for Acme", "Acme has grown by 15 %, and its competitors have not."):
            expect(page.get_by_text(found).first).to_be_visible()
