"""The dashboard in real Chromium, against a real server and a worker in another process."""

import re
from collections import Counter

import pytest
from playwright.sync_api import Page, expect

from tests.web.browser.conftest import Server, Worker, log_of

pytestmark = [pytest.mark.one_python, pytest.mark.parametrize("database", ["sqlite"], indirect=True)]


def logs_of(page: Page) -> list[str]:
    """The messages of the log, as far as they are in the page."""
    return log_of(page).locator(".log-text").all_inner_texts()


def test_activities_and_logs_appear_without_reload(server: Server, worker: Worker, page: Page) -> None:
    """A page that was empty shows an activity as it is created, each of its logs, and its end."""
    page.goto(server.url)
    expect(page.get_by_text("ax.activity.run").first).to_be_visible()  # a snippet to start with
    agent_id = worker.ask("create", "Researcher", {"tenant": "acme"})
    link = page.get_by_role("link", name="Researcher")
    expect(link).to_be_visible()
    worker.ask("update", agent_id, "Reading the archive.", 30)
    expect(page.get_by_text("Reading the archive.")).to_be_visible()
    expect(page).to_have_title(re.compile("1"))
    link.click()
    expect(page).to_have_url(re.compile(f"activities/{agent_id}$"))
    worker.ask("update", agent_id, "Writing the report.", 60)
    expect(log_of(page).get_by_text("Writing the report.")).to_be_visible()
    worker.ask("complete", agent_id)
    expect(log_of(page).get_by_text("Task completed successfully.")).to_be_visible()
    expect(page.get_by_role("button", name="Cancel", exact=True)).to_have_count(0)
    assert logs_of(page) == ["Queued.", "Reading the archive.", "Writing the report.", "Task completed successfully."]


def test_cancel_stops_the_run_of_a_worker(server: Server, worker: Worker, page: Page) -> None:
    """Canceled in the page, with a confirmation, the run in the other process stops."""
    worker.begin("work", "Crawler")
    page.goto(server.url)
    page.get_by_role("link", name="Crawler").click()
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name=re.compile("^Cancel")).last.click()
    assert worker.answer() == "canceled"
    expect(page.get_by_role("main").get_by_text("canceled").first).to_be_visible()


def test_server_killed_and_started_again(server: Server, worker: Worker, page: Page) -> None:
    """The page says that the connection is lost, and catches up: no log is missing, none is there twice."""
    agent_id = worker.ask("create", "Researcher")
    worker.ask("updates", agent_id, [f"Log {n}" for n in range(10)])
    page.set_viewport_size({"width": 1440, "height": 2_400})  # all logs are in the page
    page.goto(f"{server.url}activities/{agent_id}")
    expect(log_of(page).get_by_text("Log 9", exact=True)).to_be_visible()
    for restart in range(2):
        server.kill()
        expect(page.get_by_text(re.compile("connection lost", re.IGNORECASE)).first).to_be_visible()
        first = 10 * (restart + 1)
        worker.ask("updates", agent_id, [f"Log {n}" for n in range(first, first + 10)])
        server.start()
        expect(log_of(page).get_by_text(f"Log {first + 9}", exact=True)).to_be_visible()
    expect(page.get_by_text(re.compile("connection lost", re.IGNORECASE))).to_have_count(0)
    assert [name for name, times in Counter(logs_of(page)).items() if times > 1] == []
    assert [text for text in logs_of(page) if text.startswith("Log")] == [f"Log {n}" for n in range(30)]


def test_keyboard_alone(server: Server, worker: Worker, page: Page) -> None:
    """From the list to the second activity, its cancellation, and back."""
    for agent_type in ("Planner", "Writer"):
        worker.ask("update", worker.ask("create", agent_type), "Working.", 10)
    page.goto(server.url)
    expect(page.get_by_role("link", name="Planner")).to_be_visible()
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Planner")).to_be_visible()
    cancel = page.get_by_role("button", name="Cancel", exact=True)
    for _ in range(40):
        if cancel.evaluate("button => button === document.activeElement"):
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    for _ in range(4):
        if page.evaluate("document.activeElement.textContent.startsWith('Cancel')"):
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("main").get_by_text("canceled").first).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("link", name="Planner")).to_be_visible()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("j")
