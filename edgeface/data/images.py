"""Pictures from disk: the size from the header alone, and the pixels as RGB."""

from __future__ import annotations

import io
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeface import limits
from edgeface.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

_ROTATED = (5, 6, 7, 8)  # Exif orientations that exchange width and height
_ORIENTATION = 0x0112

MISSING = "the picture is missing"  # what an error has found where there is no file


def read_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels as displayed (Exif orientation applied), from the file's header.

    Raises:
        DataError: The file is missing, is no picture, or is larger than `limits` allows.
    """
    try:
        with _open(path) as picture:
            width, height = picture.size
            # Asking a plain JFIF file for its Exif block costs more than reading its size.
            turned = "exif" in picture.info and picture.getexif().get(_ORIENTATION) in _ROTATED
    except Exception as error:
        raise _unreadable(path, error) from None
    return (height, width) if turned else (width, height)


def read_image(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) RGB pixels, Exif orientation applied; transparency is dropped.

    Raises:
        DataError: The file is missing, is no picture, is larger than `limits` allows, ends before its last row, or has
            more than 8 bits per channel.
    """
    try:
        # Pillow rather than OpenCV: OpenCV fills the missing rows of a truncated JPEG with grey and says nothing.
        with _open(path) as picture:
            return _pixels(picture)
    except Exception as error:
        raise _unreadable(path, error) from None


def decode_image(content: bytes, *, where: str) -> NDArray[np.uint8]:
    """As `read_image`, of a picture that is in memory already; `where` it came from, for the error."""
    try:
        with _within_limits(io.BytesIO(content)) as picture:
            return _pixels(picture)
    except Exception as error:
        raise _unreadable(where, error) from None


def _pixels(picture: Image) -> NDArray[np.uint8]:
    from PIL import ImageOps

    if picture.mode[0] in "IF":  # Pillow would clip 16 bits to 8 and hand out white
        raise ValueError(f"more than 8 bits per channel: mode {picture.mode!r}")
    upright = ImageOps.exif_transpose(picture) if "exif" in picture.info else picture
    upright.info.pop("transparency", None)  # dropped anyway; of palettes Pillow would warn
    return np.asarray(upright.convert("RGB"))


def _open(path: Path) -> Image:
    """A picture whose header alone is read, within limits."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for, a device read without end
        raise ValueError("not a plain file")
    if found.st_size > limits.PICTURE_BYTES:
        raise ValueError(f"{found.st_size:,} bytes, where at most {limits.PICTURE_BYTES:,} are read")
    return _within_limits(path)


def _within_limits(file: Path | io.BytesIO) -> Image:
    from PIL import Image

    picture = Image.open(file, formats=limits.PICTURE_FORMATS)
    width, height = picture.size
    if width * height > limits.PICTURE_PIXELS:
        picture.close()
        raise ValueError(f"{width:,}x{height:,} pixels, where at most {limits.PICTURE_PIXELS:,} are decoded")
    return picture


def _unreadable(path: Path | str, error: Exception) -> DataError:
    """What a reader says of a picture; Pillow's plug-ins raise whatever comes: struct.error, KeyError, …"""
    if isinstance(error, FileNotFoundError):
        return DataError(MISSING, expected="a file", where=str(path), do="Restore it")
    return DataError(
        f"the picture cannot be read ({str(error) or type(error).__name__})",
        expected=f"a whole JPEG, PNG, WebP or BMP file with 8 bits per channel, at most {limits.PICTURE_PIXELS:,} px",
        where=str(path),
        do="Copy the file again, or drop it from the corpus",
    )
