"""Draws the contact sheet of the synthetic faces: `python benchmarks/synthetic_sheet.py docs/synthetic-faces.png`."""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from edgeface.data.synthetic import render

ROWS, COLUMNS = 6, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--px", type=int, default=96)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    # every fifth face: a new person each time, and every shot of the four in turn
    images, labels = render(options.first + 5 * np.arange(ROWS * COLUMNS), seed=0, px=options.px)
    for image, points in zip(images[-COLUMNS:], labels["landmarks98"][-COLUMNS:], strict=True):  # the last row's labels
        for x, y in points:
            cv2.circle(
                image, (round(float(x - 0.5) * 16), round(float(y - 0.5) * 16)), 12, (0, 255, 0), -1, cv2.LINE_AA, 4
            )
    sheet = images.reshape(ROWS, COLUMNS, options.px, options.px, 3).transpose(0, 2, 1, 3, 4)
    rgb = np.ascontiguousarray(sheet.reshape(ROWS * options.px, COLUMNS * options.px, 3))
    # 256 colours: sensor noise makes a full-colour PNG three times as large
    Image.fromarray(rgb).quantize(256, dither=Image.Dither.NONE).save(options.path, format="PNG", optimize=True)


if __name__ == "__main__":
    main()
