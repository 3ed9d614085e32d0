"""Pictures that are broken, enormous or not what their name says: an error that names the file, and no memory spent."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from benchmarks.fuzz.pictures import pictures_of_all_kinds
from edgeface import limits
from edgeface.data.images import read_image, read_size
from edgeface.errors import DataError

WHOLE = pictures_of_all_kinds()


def _refused(path: Path) -> str:
    """What was found wrong, by the header or by the pixels behind it."""
    with pytest.raises(DataError) as refused:
        read_image(path)
    assert str(path) in str(refused.value)
    with contextlib.suppress(DataError):
        read_size(path)
    return refused.value.found


def _png(width: int, height: int) -> bytes:
    """A PNG file of a few hundred bytes that says it has so many pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 100_000)), (b"IEND", b""))
    body = b"".join(struct.pack(">I", len(data)) + kind + data + _crc(kind + data) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def _crc(data: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(data))


@pytest.mark.parametrize("name", [name for name in WHOLE if name != "deep.png"])
def test_every_kind_of_picture_is_read_twin(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(WHOLE[name])
    pixels = read_image(path)
    assert pixels.dtype == np.uint8
    assert (pixels.shape[1], pixels.shape[0]) == read_size(path)


@pytest.mark.parametrize("name", [name for name in WHOLE if not name.endswith((".gif", ".ppm"))])
def test_a_truncated_picture_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(WHOLE[name][: len(WHOLE[name]) // 2])
    _refused(path)


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(_png(50_000, 50_000))
    assert path.stat().st_size < 1000
    _refused(path)


def test_the_limit_on_pixels_is_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(WHOLE["rgb.png"])
    read_image(path)
    monkeypatch.setattr(limits, "PICTURE_PIXELS", 16 * 12 - 1)
    assert _refused(path) == "the picture cannot be read (16x12 pixels, where at most 191 are decoded)"


def test_the_limit_on_bytes_is_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(WHOLE["rgb.png"])
    monkeypatch.setattr(limits, "PICTURE_BYTES", 100)
    assert "where at most 100 are read" in _refused(path)


def test_cmyk_keeps_its_colours(tmp_path: Path) -> None:
    path = tmp_path / "red.jpg"
    Image.new("RGB", (16, 16), (250, 10, 10)).convert("CMYK").save(path, quality=95)
    # JPEG at quality 95 moves a flat colour by 2 at most
    assert np.abs(read_image(path).astype(int) - (250, 10, 10)).max() <= 4


def test_sixteen_bits_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    path.write_bytes(WHOLE["deep.png"])
    assert "more than 8 bits per channel" in _refused(path)


def test_an_exif_rotation_turns_size_and_pixels_alike(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    path.write_bytes(WHOLE["exif.jpg"])
    assert read_size(path) == (12, 16)
    assert read_image(path).shape == (16, 12, 3)


# What each orientation does to the stored rows and columns (TIFF 6.0, tag 274; CIPA DC-008, 4.6.4).
UPRIGHT: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: stored.transpose(1, 0, 2)[:, ::-1],
    7: lambda stored: stored.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda stored: stored.transpose(1, 0, 2)[::-1],
}
STORED = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)


def _saved(path: Path, picture: Image.Image, **options: Any) -> Path:
    picture.save(path, **options)
    return path


def _turned(path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _saved(path, Image.fromarray(STORED), exif=exif)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_each_exif_orientation_is_put_upright(orientation: int, tmp_path: Path) -> None:
    path = _turned(tmp_path / "a.png", orientation)
    expected = UPRIGHT[orientation](STORED)
    assert np.array_equal(read_image(path), expected)
    assert read_size(path) == (expected.shape[1], expected.shape[0])


def test_the_eight_orientations_differ_twin() -> None:
    assert len({upright(STORED).tobytes() for upright in UPRIGHT.values()}) == 8


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_turns_nothing(orientation: int, tmp_path: Path) -> None:
    path = _turned(tmp_path / "a.png", orientation)
    assert np.array_equal(read_image(path), STORED)
    assert read_size(path) == (16, 12)


def test_a_palette_with_transparency_keeps_its_colours(tmp_path: Path) -> None:
    palette = Image.fromarray(STORED).quantize(16)
    path = _saved(tmp_path / "a.png", palette, transparency=bytes(range(0, 256, 16)))
    assert np.array_equal(read_image(path), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_dropped(mode: str, tmp_path: Path) -> None:
    picture = Image.fromarray(STORED).convert(mode)
    picture.putalpha(Image.fromarray(STORED[..., 0]))
    expected = np.asarray(Image.fromarray(STORED).convert("L" if mode == "LA" else "RGB").convert("RGB"))
    assert np.array_equal(read_image(_saved(tmp_path / "a.png", picture)), expected)


@pytest.mark.parametrize(("name", "options"), [("a.png", {}), ("a.webp", {"lossless": True}), ("a.gif", {})])
def test_of_an_animation_the_first_picture_is_read(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    first = Image.fromarray(STORED).quantize(64).convert("RGB")
    path = _saved(tmp_path / name, first, save_all=True, append_images=[first.rotate(180)], **options)
    with Image.open(path) as picture:
        assert getattr(picture, "n_frames", 1) == 2
    assert np.array_equal(read_image(path), np.asarray(first))


def test_sixteen_bits_a_colour_are_read_by_their_high_bytes(tmp_path: Path) -> None:
    """Of colour pictures Pillow takes the high byte, which clips nothing; of grey ones it would clip."""
    import cv2

    path = tmp_path / "deep.png"
    assert cv2.imwrite(str(path), STORED[..., ::-1].astype(np.uint16) * 256 + 255)
    assert np.array_equal(read_image(path), STORED)


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 1000, b"not a picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_no_picture_is_refused_whatever_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "face.jpg"
    path.write_bytes(content)
    _refused(path)


def test_a_picture_under_another_suffix_is_read(tmp_path: Path) -> None:
    path = tmp_path / "face.jpg"
    path.write_bytes(WHOLE["rgb.png"])
    assert read_size(path) == (16, 12)


def test_forms_that_faces_are_not_published_in_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "face.tif"
    Image.new("RGB", (8, 8)).save(path)
    _refused(path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "face.jpg"
    os.mkfifo(path)
    assert "not a plain file" in _refused(path)


@pytest.mark.parametrize("name", ["a\0b.jpg", "x" * 300 + ".jpg", "\ud800.jpg"])
def test_names_that_no_file_can_have_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError) as refused:
        read_size(tmp_path / name)
    str(refused.value).encode()


@settings(max_examples=150)
@given(st.sampled_from(sorted(WHOLE)), st.integers(0, 2**32), st.binary(max_size=8))
def test_changed_bytes_are_read_or_refused(name: str, place: int, put: bytes) -> None:
    content = bytearray(WHOLE[name])
    place %= len(content)
    content[place : place + len(put)] = put
    path = Path(os.environ["EDGEFACE_CACHE"]) / "changed"
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        assert read_image(path).shape[2] == 3


def test_a_changed_picture_still_reads_as_another_one_twin() -> None:
    before = np.asarray(Image.open(io.BytesIO(WHOLE["a.bmp"])))
    changed = bytearray(WHOLE["a.bmp"])
    changed[-1] ^= 255
    assert not np.array_equal(before, np.asarray(Image.open(io.BytesIO(bytes(changed)))))
