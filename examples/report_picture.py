"""Write a report on two photos, and the README's picture of it: the page as a browser shows it.

Needs Chromium as the command chromium, and Playwright: pip install playwright

Run: python examples/report_picture.py docs/images/report.png
"""

import shutil
import sys
import tempfile
from pathlib import Path

import skimage
from playwright.sync_api import sync_playwright

from guided_backprop.models import load_default, read_image
from guided_backprop.report import Report

PHOTOS = ("coffee.png", "chelsea.png")


def write(target: Path) -> Path:
    """Write the report of the photos to ``target``."""
    vision = load_default()
    photos = [read_image(Path(skimage.data_dir) / name) for name in PHOTOS]
    report = Report(target, vision.network, name=vision.name, class_names=vision.class_names)
    report.add(vision.images(photos), PHOTOS, places=[vision.place(photo) for photo in photos])
    return report.finish()


def draw(page: Path, target: Path) -> None:
    """Save what a browser shows of the page's first screen."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1000, "height": 1490})
        tab.goto(page.as_uri())
        tab.screenshot(path=target)
        browser.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        draw(write(Path(folder) / "report.html"), Path(sys.argv[1]))
