"""Text of activities is only ever text."""

import pytest
from playwright.sync_api import Page, expect

from tests.web.browser.conftest import Server, Worker, log_of
from tests.web.browser.hostile import messages

pytestmark = [pytest.mark.one_python, pytest.mark.parametrize("database", ["sqlite"], indirect=True)]


def test_hostile_messages_are_inert(server: Server, worker: Worker, page: Page) -> None:
    """200 of them as messages, names and metadata, in the list and the detail: nothing runs, loads or breaks out."""
    hostile = messages(200)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    for message in hostile[:30]:
        agent_id = worker.ask("create", message[:200], {"<b>key</b>": message, "page": "javascript:window.hacked=true"})
        worker.ask("update", agent_id, message)
    agent_id = worker.ask("create", "Crawler", {"note": hostile[0]})
    worker.ask("updates", agent_id, hostile)
    worker.ask("update", agent_id, "The last one.")

    page.goto(server.url)
    expect(page.get_by_role("link", name="Crawler")).to_be_visible()
    page.get_by_role("link", name="Crawler").click()
    log = log_of(page)
    expect(log.get_by_text("The last one.")).to_be_visible()
    for _ in range(40):
        log.evaluate("log => log.scrollBy(0, -400)")
        page.wait_for_timeout(10)
    assert page.evaluate("window.hacked") is None
    assert page.locator("h1").all_inner_texts() == ["Crawler"]
    assert page.locator("iframe, form, object, embed, script:not([src]), style").count() == 0
    assert page.locator("a[href^='javascript:' i]").count() == 0
    assert [url for url in asked if not url.startswith(server.url)] == []
