"""Open the page of ``guided-backprop app``, upload a photo, and save what a browser shows.

Needs Chromium as the command chromium, and Playwright: pip install playwright

Run: python examples/app_picture.py docs/images/app.png
"""

import shutil
import subprocess
import sys
from pathlib import Path

import skimage
from playwright.sync_api import sync_playwright

PORT = "7869"


def draw(address: str, target: Path) -> None:
    """Save what a browser shows of the page once a photo is explained."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1000, "height": 900})
        tab.goto(address)
        tab.locator("input[type=file]").first.set_input_files(Path(skimage.data_dir) / "chelsea.png")
        tab.get_by_text("281 tabby").first.wait_for()
        tab.get_by_role("button", name="Explain", exact=True).click()
        tab.locator(".maps img").nth(3).wait_for()
        tab.wait_for_function("[...document.querySelectorAll('.maps img')].every(image => image.complete)")
        tab.wait_for_timeout(500)
        tab.screenshot(path=target, full_page=True)
        browser.close()


if __name__ == "__main__":
    command = [sys.executable, "-m", "guided_backprop", "app", "--port", PORT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            server.stdout.readline()  # the page can be opened
            draw(f"http://127.0.0.1:{PORT}/", Path(sys.argv[1]))
        finally:
            server.terminate()
