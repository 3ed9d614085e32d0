"""Where the members of a tar file lie: headers are read and judged, nothing is unpacked and nothing is believed.

A shard may come from anywhere. Plain files are taken; directories are passed over; whatever points elsewhere or
promises what it does not hold (links, devices, sparse files, parts of other volumes) is refused, and so are names that
lead out of a folder. Members are read from the shard itself by place and length, and none is ever written to disk.

Source: POSIX.1-1988 (ustar), POSIX.1-2001 (pax) and GNU tar's long names and large numbers.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, NoReturn

from edgeface import limits
from edgeface.data.listing import leads_out
from edgeface.errors import DataError

BLOCK = 512
_PLAIN = b"0\0"
_FOLDER = ord("5")
_LONG_NAME, _PAX, _PAX_GLOBAL = ord("L"), ord("x"), ord("g")
_REFUSED = {
    ord("1"): "a hard link",
    ord("2"): "a symbolic link",
    ord("3"): "a character device",
    ord("4"): "a block device",
    ord("6"): "a pipe",
    ord("7"): "a contiguous file",
    ord("D"): "a GNU directory list",
    ord("K"): "a GNU long link",
    ord("M"): "a part of another volume",
    ord("S"): "a sparse file",
}


class Member(NamedTuple):
    """A plain file inside a tar.

    Attributes:
        name: Its path as written.
        offset: Place of its first byte in the tar.
        size: Its length in bytes.
    """

    name: str
    offset: int
    size: int


@contextmanager
def open_tar(path: Path) -> Iterator[int]:
    """A descriptor of a tar file, open for reading.

    Raises:
        DataError: It is missing, or no plain file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise DataError(
            f"the shard cannot be opened ({os.strerror(error.errno or 0).lower()})",
            expected="a tar file",
            where=str(path),
            do="Restore it, or write the shards again",
        ) from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # a pipe would be waited for
            _refuse(path, "not a plain file")
        yield descriptor
    finally:
        os.close(descriptor)


def read_member(descriptor: int, member: Member, *, where: str) -> bytes:
    """The bytes of a member.

    Raises:
        DataError: The file ends before it does, or it is larger than any that is read.
    """
    content = os.pread(descriptor, member.size, member.offset)
    if len(content) != member.size:
        raise DataError(
            f"{len(content)} of {member.size} bytes of member {member.name!r}",
            expected="the whole member; the shard changed or was cut short while it was read",
            where=where,
            do="Restore the shard",
        )
    return content


def member_at(descriptor: int, path: Path, offset: int) -> Member:
    """The plain file whose first byte is at a place, by the header before it, which states its whole name.

    Args:
        descriptor: From `open_tar`.
        path: Its path, for messages.
        offset: What someone says is the place of a member; nothing of that is believed.

    Raises:
        DataError: No header of a plain file stands there.
    """
    place = offset - BLOCK
    header = os.pread(descriptor, BLOCK, place) if place >= 0 else b""
    if len(header) < BLOCK:
        _refuse(path, f"no tar header at byte {place:,}")
    size = _checked_size(header, path, place)
    name = _name(header, path, place)
    _check_name(name, path, place)
    if header[156] not in _PLAIN:
        _refuse(path, f"member {name!r} is {_REFUSED.get(header[156], f'of type {chr(header[156])!r}')}")
    return Member(name, offset, size)


def members(descriptor: int, path: Path) -> Iterator[Member]:
    """The plain files of a tar in their order; each header is checked before it is followed.

    Args:
        descriptor: From `open_tar`.
        path: Its path, for messages.

    Raises:
        DataError: No tar file, a member that is refused, one beyond `limits`, or an end that is missing.
    """
    total = os.fstat(descriptor).st_size
    if os.pread(descriptor, 2, 0) in (b"\x1f\x8b", b"BZ", b"\xfd7", b"(\xb5"):
        _refuse(
            path, "a compressed tar", do="Unpack it with gunzip, bunzip2, unxz or unzstd: samples are read by place"
        )
    place, count = 0, 0
    long_name = ""
    while True:
        header = os.pread(descriptor, BLOCK, place)
        if len(header) < BLOCK:
            _refuse(
                path, f"it ends at byte {total:,} without an end-of-archive block", do="Copy it again: it is cut short"
            )
        if not any(header):
            _check_end(descriptor, path, place, total)
            return
        size = _checked_size(header, path, place)
        kind = header[156]
        body, place = place + BLOCK, place + BLOCK + -(-size // BLOCK) * BLOCK
        name = long_name or _name(header, path, body - BLOCK)
        if body + size > total:
            _refuse(path, f"member {name!r} of {size:,} bytes from byte {body:,}, where the file ends at {total:,}")
        if kind in (_LONG_NAME, _PAX, _PAX_GLOBAL):
            if size > limits.TAR_HEADER_BYTES:
                _refuse(path, f"a header of {size:,} bytes before {name!r}, where {limits.TAR_HEADER_BYTES:,} are read")
            content = os.pread(descriptor, size, body)
            if kind == _LONG_NAME:
                long_name = _text(content.rstrip(b"\0"), path, body)
            else:
                told = _pax(content, path, body)
                _refuse_pax(told, path, body)
                if kind == _PAX:
                    long_name = told.get("path", long_name)
            continue
        long_name = ""
        _check_name(name, path, body)
        if kind == _FOLDER:
            continue
        if kind not in _PLAIN:
            _refuse(path, f"member {name!r} is {_REFUSED.get(kind, f'of type {chr(kind)!r}')}")
        count += 1
        if count > limits.TAR_MEMBERS:
            _refuse(path, f"more than {limits.TAR_MEMBERS:,} members", do="Write smaller shards")
        if size > limits.PICTURE_BYTES:
            _refuse(path, f"member {name!r} of {size:,} bytes, where at most {limits.PICTURE_BYTES:,} are read")
        yield Member(name, body, size)


def _refuse(
    path: Path, found: str, *, do: str = "Leave the shard out, or write it again from files you trust"
) -> NoReturn:
    raise DataError(found, expected="an uncompressed tar of plain files", where=str(path), do=do)


def _checked_size(header: bytes, path: Path, place: int) -> int:
    """The size a header states, once its checksum holds."""
    stated = header[148:156].replace(b"\0", b" ").strip()
    plain = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if not stated.isdigit() or len(stated) > 8 or any(digit > ord("7") for digit in stated) or int(stated, 8) != plain:
        _refuse(path, f"no tar header at byte {place:,} (its checksum does not hold)")
    field = header[124:136]
    if field[0] & 0x80:  # GNU: the other bits are a whole number, which is negative when the next one is set
        if field[0] != 0x80:
            _refuse(path, f"a size that is negative or too large at byte {place:,}")
        return int.from_bytes(field[1:], "big")
    digits = field.replace(b"\0", b" ").strip()
    if any(not ord("0") <= digit <= ord("7") for digit in digits):
        _refuse(path, f"a size that is no number at byte {place:,}: {digits!r}")
    return int(digits or b"0", 8)


def _name(header: bytes, path: Path, place: int) -> str:
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0":
        prefix = header[345:500].partition(b"\0")[0]
        name = prefix + b"/" + name if prefix else name
    return _text(name, path, place)


def _text(raw: bytes, path: Path, place: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        _refuse(path, f"a name that is no UTF-8 at byte {place:,}: {raw[:80]!r}")


def _check_name(name: str, path: Path, place: int) -> None:
    if not name or len(name) > limits.LABEL_NAME or not name.isprintable():
        _refuse(
            path, f"a name at byte {place:,} that is empty, unprintable or longer than {limits.LABEL_NAME} characters"
        )
    if wrong := leads_out(name.removeprefix("./") or "."):
        _refuse(path, f"member {name!r}: {wrong}")


def _pax(content: bytes, path: Path, place: int) -> dict[str, str]:
    """Records "LENGTH KEY=VALUE\\n" of a pax header."""
    told: dict[str, str] = {}
    rest = content.rstrip(b"\0")
    while rest:
        length, blank, _ = rest.partition(b" ")
        if not (blank and length.isdigit() and len(length) <= 8 and len(length) + 3 <= int(length) <= len(rest)):
            _refuse(path, f"a pax header at byte {place:,} that cannot be read")
        record, rest = rest[: int(length)], rest[int(length) :]
        key, equals, value = record[len(length) + 1 :].partition(b"=")
        if not equals or not value.endswith(b"\n"):
            _refuse(path, f"a pax header at byte {place:,} that cannot be read")
        told[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "replace")
    return told


def _refuse_pax(told: dict[str, str], path: Path, place: int) -> None:
    if odd := [key for key in told if key.startswith("GNU.sparse")]:
        _refuse(path, f"a sparse file at byte {place:,} ({odd[0]})")
    if "size" in told:  # only files of 8 GiB and more need it, and none of these is read
        _refuse(path, f"a member of {told['size'][:20]} bytes at byte {place:,}")


def _check_end(descriptor: int, path: Path, place: int, total: int) -> None:
    """After the first empty block there are only empty ones: what another reader would call the end hides nothing."""
    left = total - place
    if left > limits.TAR_PADDING_BYTES or any(os.pread(descriptor, left, place)):
        _refuse(path, f"{left:,} bytes after the end of the archive at byte {place:,}")
