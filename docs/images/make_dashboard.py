"""Write dashboard.png and dashboard-dark.png: the dashboard of `make dashboard`, half a minute after its start.

python docs/images/make_dashboard.py
"""

import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent
EXAMPLES = HERE.parent.parent / "examples"
SECONDS = 30


def main() -> None:
    """Start the example, look at it, and stop it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/"
    command = [sys.executable, "live_activities.py", "--dashboard", f"--port={port}", "--seed=11"]
    example = subprocess.Popen(command, cwd=EXAMPLES)  # noqa: S603
    try:
        time.sleep(SECONDS)
        url = str(httpx.get(url, follow_redirects=True).url)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 800}, device_scale_factor=1.5)
            page.goto(url)
            picture(page, "light", "dashboard.png")
            picture(page, "dark", "dashboard-dark.png")
            browser.close()
    finally:
        example.terminate()
        example.wait()


def picture(page: Page, scheme: str, name: str) -> None:
    """Write one picture."""
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.wait_for_timeout(3_000)
    page.screenshot(path=HERE / name)


if __name__ == "__main__":
    main()
