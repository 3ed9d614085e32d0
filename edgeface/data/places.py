"""Tables of places: where the samples of a shard lie, kept beside it so that its headers need not be gone through.

`edgeface data pack --shards` writes one for each shard. Its members lie one after another, a picture and a description
a sample, so that names and sizes give every place. A table is an .npz file of three arrays:

    names      (bytes of all names,) uint8: what the two members of each sample share, one after the other, in ASCII
    lengths    (N,) uint16: bytes of each name
    sizes      (N, 2) uint32: bytes of the picture and of the description

Some 18 bytes a sample. A table is not believed: it has to give a shard of just this size, and whoever reads a member
compares its name and size with the header before it (`edgeface.data.tar.member_at`).
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface import limits
from edgeface.arrays import read_arrays
from edgeface.data.tar import BLOCK
from edgeface.errors import DataError
from edgeface.files import sha256_file

SUFFIX = ".places.npz"
_TYPES: dict[str, np.dtype[Any]] = {"names": np.dtype("<u1"), "lengths": np.dtype("<u2"), "sizes": np.dtype("<u4")}


def places_file(shard: Path) -> Path:
    """Where the table of a shard stands."""
    return shard.with_suffix(SUFFIX)


def encode_places(names: str, spans: NDArray[np.int64], places: NDArray[np.int64]) -> bytes:
    """A table's bytes, the same for the same samples.

    Args:
        names: As in `edgeface.data.shards.Table`, in ASCII.
        spans: (N, 2) beginning and end of each name, one after the other.
        places: (N, 2, 2) offset and size of picture and description, which lie as this module says.
    """
    sizes = places[:, :, 1]
    assert np.array_equal(_offsets(sizes), places[:, :, 0]), "members that do not lie one after another"
    stream = io.BytesIO()
    np.savez(
        stream,
        allow_pickle=False,
        names=np.frombuffer(names.encode("ascii"), _TYPES["names"]),
        lengths=(spans[:, 1] - spans[:, 0]).astype(_TYPES["lengths"]),
        sizes=sizes.astype(_TYPES["sizes"]),
    )
    return stream.getvalue()


def read_places(
    shard: Path, *, sha256: str, shard_bytes: int
) -> tuple[str, NDArray[np.int64], NDArray[np.int64]] | None:
    """What the table of a shard says.

    Args:
        shard: The tar file it stands beside.
        sha256: Digest that the index states of it.
        shard_bytes: Size of the shard as it is.

    Returns:
        Names, spans and places, as `encode_places` takes them; None where there is no such file.

    Raises:
        DataError: It is damaged, or not that of this shard.
    """
    file = places_file(shard)
    try:
        arrays = read_arrays(file, limit=limits.PLACES_BYTES)
        if sha256_file(file) != sha256:
            raise ValueError("its sha256 is not the one that the index file states")
        return _checked(arrays["names"], arrays["lengths"], arrays["sizes"], shard_bytes=shard_bytes)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"a table of places, {file.name}, that cannot be used ({error})",
            expected="the table that was written with the shard, and the shard as it was then",
            where=str(shard),
            do="Restore both; or delete the table, and the shard's headers are gone through instead",
        ) from None


def _checked(
    names: NDArray[np.uint8], lengths: NDArray[np.uint16], sizes: NDArray[np.uint32], *, shard_bytes: int
) -> tuple[str, NDArray[np.int64], NDArray[np.int64]]:
    count = len(lengths) if lengths.ndim == 1 else -1
    found: dict[str, NDArray[Any]] = {"names": names, "lengths": lengths, "sizes": sizes}
    if any(found[name].dtype != kind for name, kind in _TYPES.items()):
        raise ValueError("arrays of other types than uint8, uint16 and uint32")
    if names.ndim != 1 or sizes.shape != (count, 2):
        raise ValueError(f"arrays of {names.shape}, {lengths.shape} and {sizes.shape}")
    if 2 * count > limits.TAR_MEMBERS:
        raise ValueError(f"{2 * count:,} members, where at most {limits.TAR_MEMBERS:,} are read")
    if lengths.min(initial=1) < 1 or lengths.max(initial=1) > limits.LABEL_NAME:
        raise ValueError(f"a name that is empty or longer than {limits.LABEL_NAME} characters")
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    if ends[-1] != len(names):
        raise ValueError(f"{len(names):,} bytes of names, where their lengths add up to {ends[-1]:,}")
    for kind, column, most in (("picture", 0, limits.PICTURE_BYTES), ("description", 1, limits.SAMPLE_BYTES)):
        if (largest := int(sizes[:, column].max(initial=0))) > most:
            raise ValueError(f"a {kind} of {largest:,} bytes, where at most {most:,} are read")
    places = np.stack([_offsets(sizes), sizes.astype(np.int64)], axis=2)
    end = int((BLOCK + _padded(places[:, :, 1])).sum())
    if -(-(end + 2 * BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE != shard_bytes:
        raise ValueError(f"its members end at byte {end:,} of {shard_bytes:,} of the shard")
    return names.tobytes().decode("ascii"), np.stack([ends[:-1], ends[1:]], axis=1), places


def _padded(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return -(-sizes // BLOCK) * BLOCK


def _offsets(sizes: NDArray[np.integer]) -> NDArray[np.int64]:
    """(N, 2) places of members that lie one after another, each behind a header."""
    steps = BLOCK + _padded(sizes.astype(np.int64).reshape(-1))
    offsets: NDArray[np.int64] = np.cumsum(steps) - steps + BLOCK
    return offsets.reshape(sizes.shape)
