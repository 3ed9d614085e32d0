"""Pictures of a report for docs/report.md, taken by Chromium.

`python -m benchmarks.report_pictures runs/demo/report.html docs/images`; the report must be one of drawn faces.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

# File to width, colour scheme, the section it begins with, and its height in CSS pixels.
PICTURES = {
    "report-desktop.png": (1280, "light", "", 1180),
    "report-charts.png": (1280, "dark", "groups", 760),
    "report-faces.png": (1280, "light", "examples", 900),
}
PHONE = (("light", ""), ("dark", "cost"), ("light", "confusion"), ("dark", "examples"))
PHONE_SIZE = (390, 844)
LARGEST_BYTES = 300_000  # a picture above it is kept in 256 colours


def main() -> None:
    report, out = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or "/usr/bin/chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, (width, scheme, section, height) in PICTURES.items():
            save(shot(browser, report, width=width, height=height, scheme=scheme, section=section), out / name)
        width, height = PHONE_SIZE
        phones = [
            shot(browser, report, width=width, height=height, scheme=scheme, section=section)
            for scheme, section in PHONE
        ]
        sheet = Image.new("RGB", (len(phones) * (width + 24) - 24, height), "#c8ccd2")
        for place, phone in enumerate(phones):
            sheet.paste(phone, (place * (width + 24), 0))
        save(sheet, out / "report-phone.png")
        browser.close()


def shot(browser: Any, report: Path, *, width: int, height: int, scheme: str, section: str) -> Image.Image:
    """The window, scrolled to a section as its link in the contents does."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    page = context.new_page()
    page.goto(report.as_uri() + (f"#{section}" if section else ""))
    content = page.screenshot()
    context.close()
    return Image.open(io.BytesIO(content)).convert("RGB")


def save(picture: Image.Image, path: Path) -> None:
    picture.save(path, optimize=True)
    if path.stat().st_size > LARGEST_BYTES:
        picture.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=3).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
