"""Pictures from disk: the size from the header alone, and the pixels as RGB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import DataError

_ROTATED = (5, 6, 7, 8)  # Exif orientations that exchange width and height
_ORIENTATION = 0x0112


def read_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels as displayed (Exif orientation applied), from the file's header.

    Raises:
        DataError: The file is missing or is no picture.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            width, height = picture.size
            # Asking a plain JFIF file for its Exif block costs more than reading its size.
            turned = "exif" in picture.info and picture.getexif().get(_ORIENTATION) in _ROTATED
    except FileNotFoundError:
        raise DataError("the picture is missing", expected="a file", where=str(path), do="Restore it") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from None
    return (height, width) if turned else (width, height)


def read_image(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) RGB pixels, Exif orientation applied; transparency is dropped.

    Raises:
        DataError: The file is missing, is no picture, ends before its last row, or has more than 8 bits per channel.
    """
    from PIL import Image, ImageOps

    try:
        # Pillow rather than OpenCV: OpenCV fills the missing rows of a truncated JPEG with grey and says nothing.
        with Image.open(path) as picture:
            if picture.mode[0] in "IF":  # Pillow would clip 16 bits to 8 and hand out white
                raise ValueError(f"more than 8 bits per channel: mode {picture.mode!r}")
            upright = ImageOps.exif_transpose(picture) if "exif" in picture.info else picture
            return np.asarray(upright.convert("RGB"))
    except FileNotFoundError:
        raise DataError("the picture is missing", expected="a file", where=str(path), do="Restore it") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: BaseException) -> DataError:
    return DataError(
        f"the picture cannot be read ({error})",
        expected="a whole JPEG, PNG, WebP or BMP file with 8 bits per channel",
        where=str(path),
        do="Copy the file again, or drop it from the corpus",
    )
