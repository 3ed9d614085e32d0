"""Inputs for the reader of pictures."""

from __future__ import annotations

import functools
import io
import random
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz.mutate import mutate_bytes
from benchmarks.fuzz.reader import Files, Reader


@functools.cache
def pictures_of_all_kinds() -> Mapping[str, bytes]:
    """Small pictures in every form that a phone or scanner writes."""
    from PIL import Image, PngImagePlugin

    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    rgb = Image.fromarray(pixels)
    turned = Image.Exif()
    turned[0x0112], turned[0x010E] = 6, "a picture"
    turned.get_ifd(0x8769)[0x9000] = b"0220"
    words = PngImagePlugin.PngInfo()
    words.add_text("comment", "x" * 40, zip=True)
    words.add_itxt("title", "y")
    deep = Image.fromarray(np.arange(192, dtype=np.uint16).reshape(12, 16) * 300)
    made: list[tuple[str, Any, dict[str, Any]]] = [
        ("rgb.jpg", rgb, {"quality": 80}),
        ("progressive.jpg", rgb, {"progressive": True}),
        ("exif.jpg", rgb, {"exif": turned, "dpi": (72, 72), "comment": b"c"}),
        ("cmyk.jpg", rgb.convert("CMYK"), {}),
        ("grey.jpg", rgb.convert("L"), {}),
        ("rgb.png", rgb, {}),
        ("palette.png", rgb.convert("P"), {"transparency": 3}),
        ("alpha.png", rgb.convert("RGBA"), {"pnginfo": words, "exif": turned}),
        ("deep.png", deep, {}),
        ("bits.png", rgb.convert("1"), {}),
        ("a.bmp", rgb, {}),
        ("palette.bmp", rgb.convert("P"), {}),
        ("a.gif", rgb, {"save_all": True, "append_images": [rgb.rotate(90)]}),
        ("lossy.webp", rgb, {"exif": turned}),
        ("lossless.webp", rgb.convert("RGBA"), {"lossless": True}),
        ("a.ppm", rgb, {}),
    ]
    content = {}
    for name, picture, options in made:
        stream = io.BytesIO()
        suffix = name.rpartition(".")[2]
        picture.save(stream, format={"jpg": "JPEG"}.get(suffix, suffix.upper()), **options)
        content[name] = stream.getvalue()
    return content


def image_reader() -> Reader:
    from edgeface.data.images import read_image, read_size

    pictures = list(pictures_of_all_kinds().values())

    def make(dice: random.Random) -> Files:
        content = mutate_bytes(dice, dice.choice(pictures))
        if content[:4] == b"\x89PNG" and dice.randrange(2):
            content = _with_checksums(content)
        return {"a.jpg": content}

    def read(folder: Path) -> object:
        width, height = read_size(folder / "a.jpg")
        if width * height > 2**22:  # a size that is allowed; time goes into pictures that decode to more than noise
            return None
        return read_image(folder / "a.jpg")

    return Reader(make=make, read=read)


def _with_checksums(png: bytes) -> bytes:
    """A PNG file with the checksum of each chunk put right, so that its content is looked at."""
    data, at = bytearray(png), 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            break
        struct.pack_into(">I", data, end, zlib.crc32(bytes(data[at + 4 : end])))
        at = end + 4
    return bytes(data)
