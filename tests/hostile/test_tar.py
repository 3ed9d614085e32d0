"""Shards are hostile: what points elsewhere, lies about its size or is cut short is refused by name, never unpacked."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeface import limits
from edgeface.data.shard_writer import encode_picture
from edgeface.data.shards import read_index, tabulate
from edgeface.data.sources import open_source
from edgeface.data.stream import open_stream
from edgeface.data.tar import Member, members, open_tar, read_member
from edgeface.errors import DataError

PICTURE = encode_picture(np.full((16, 16, 3), 90, np.uint8), "png")
TOLD = json.dumps({"labels": {"gender": 1}}).encode()


def entry(
    name: str, content: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, link
    return info, content


def good(number: int) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [entry(f"{number:04d}.png", PICTURE), entry(f"{number:04d}.json", TOLD)]


def written(path: Path, entries: list[tuple[tarfile.TarInfo, bytes]], *, form: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    return path


def outside(folder: Path) -> list[str]:
    """Every file below a folder and beside it."""
    return sorted(str(file) for file in folder.parent.rglob("*") if file.is_file())


def test_a_plain_shard_is_read_and_its_members_are_where_tarfile_finds_them(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tar", [*good(0), entry("a folder", kind=tarfile.DIRTYPE), *good(1)])
    with open_tar(path) as descriptor, tarfile.open(path) as reference:
        found = list(members(descriptor, path))
        expected = [one for one in reference.getmembers() if one.isfile()]
        assert [(m.name, m.offset, m.size) for m in found] == [(m.name, m.offset_data, m.size) for m in expected]
        assert [read_member(descriptor, member, where="") for member in found] == [PICTURE, TOLD] * 2
        # twin: another place is another content
        assert read_member(descriptor, found[0]._replace(offset=found[0].offset + 1), where="") != PICTURE


@pytest.mark.parametrize(
    ("form", "length"),
    [
        *((tarfile.USTAR_FORMAT, length) for length in (60, 120)),  # it has no room for longer ones
        *((form, length) for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT) for length in (60, 120, 300, 720)),
    ],
)
def test_long_names_are_read_as_tarfile_reads_them(tmp_path: Path, form: int, length: int) -> None:
    name = "/".join(["f" * 60] * (length // 60)) + f"/{'n' * 20}.png"
    path = written(tmp_path / "a.tar", [entry(name, PICTURE)], form=form)
    with open_tar(path) as descriptor, tarfile.open(path) as reference:
        assert [member.name for member in members(descriptor, path)] == reference.getnames() == [name]


HOSTILE: dict[str, tuple[list[tuple[tarfile.TarInfo, bytes]], str]] = {
    "a path upwards": ([entry("../../escaped.png", PICTURE)], r"'\.\./\.\./escaped\.png': path out of the folder"),
    "a path upwards in the middle": ([entry("a/../../b.png", PICTURE)], "path out of the folder"),
    "an absolute path": ([entry("/tmp/escaped.png", PICTURE)], r"'/tmp/escaped\.png': path out of the folder"),
    "a Windows path": ([entry("C:\\escaped.png", PICTURE)], "path out of the folder"),
    "a symbolic link": (
        [entry("0000.png", kind=tarfile.SYMTYPE, link="/etc/passwd")],
        r"'0000\.png' is a symbolic link",
    ),
    "a hard link": ([entry("0000.png", kind=tarfile.LNKTYPE, link="/etc/passwd")], r"'0000\.png' is a hard link"),
    "a character device": ([entry("0000.png", kind=tarfile.CHRTYPE)], "is a character device"),
    "a block device": ([entry("0000.png", kind=tarfile.BLKTYPE)], "is a block device"),
    "a pipe": ([entry("0000.png", kind=tarfile.FIFOTYPE)], "is a pipe"),
    "a contiguous file": ([entry("0000.png", kind=tarfile.CONTTYPE)], "is a contiguous file"),
    "GNU sparse": ([entry("0000.png", kind=tarfile.GNUTYPE_SPARSE)], "is a sparse file"),
    "an unknown type": ([entry("0000.png", kind=b"Z")], "is of type 'Z'"),
    "a name with a line break": ([entry("a\nb.png", PICTURE)], "unprintable"),
    "a member twice": ([*good(0), entry("0000.png", PICTURE)], r"'0000\.png' stands twice: its sample has one already"),
    "two pictures": ([entry("0.png", PICTURE), entry("0.jpg", PICTURE)], r"'0\.jpg' stands twice"),
    "a sample that comes back": (
        [*good(0), *good(1), entry("0000.cls", b"1")],
        r"'0000\.cls' stands twice: its sample began",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_each_hostile_member_is_an_error_that_names_shard_and_member(tmp_path: Path, case: str) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    entries, words = HOSTILE[case]
    path = written(folder / "train-0.tar", entries, form=tarfile.GNU_FORMAT)
    before = outside(folder)
    with pytest.raises(DataError, match=words) as caught:
        tabulate(path)
    assert caught.value.where == str(path)
    for read in (
        lambda: open_source(f"webdataset:{folder}", root=tmp_path),
        lambda: open_stream(f"webdataset:{path}", px=16, margin=1.0),
    ):
        with pytest.raises(DataError, match=words):
            read()
    assert outside(folder) == before  # nothing was unpacked


def test_the_same_shard_without_the_hostile_member_is_read_twin(tmp_path: Path) -> None:
    written(tmp_path / "train-0.tar", [*good(0), *good(1)], form=tarfile.GNU_FORMAT)
    assert len(open_source(f"webdataset:{tmp_path}", root=tmp_path)) == 2


def patched(path: Path, change: Callable[[bytearray], bytearray | None]) -> Path:
    """The shard with other bytes, the first header's checksum made right again."""
    content = bytearray(path.read_bytes())
    content = change(content) or content
    header = content[:512]
    header[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(content)
    return path


def put(place: int, content: bytes) -> Callable[[bytearray], None]:
    def change(held: bytearray) -> None:
        held[place : place + len(content)] = content

    return change


LIES: dict[str, tuple[Callable[[bytearray], bytearray | None], str]] = {
    "more bytes than the file has": (
        put(124, b"00000777777\0"),
        r"member '0000\.png' of 262,143 bytes.*where the file ends",
    ),
    "a bomb of 8 GiB": (put(124, b"77777777777\0"), "of 8,589,934,591 bytes"),
    "a size in base 256 beyond all files": (put(124, b"\x80" + b"\xff" * 11), "where the file ends"),
    "a negative size": (put(124, b"\xff" * 12), "negative or too large"),
    "a size that is no number": (put(124, b"12x45678901\0"), "no number"),
    "a name that is no UTF-8": (put(0, b"\xff\xfe\xfa.png"), "no UTF-8"),
    "no name": (put(0, b"\0" * 100), "empty"),
    "cut inside a member": (lambda held: held[:530], "where the file ends at 530"),
    "cut between members": (lambda held: held[:1024], "without an end-of-archive block"),
    "cut inside a header": (lambda held: held[:1200], "without an end-of-archive block"),
    "hidden behind the end": (lambda held: held + b"hidden" * 100, "after the end of the archive"),
    "much padding": (lambda held: held + bytes(limits.TAR_PADDING_BYTES), "after the end of the archive"),
}


@pytest.mark.parametrize("case", LIES)
def test_each_lie_of_a_header_is_an_error_that_names_the_shard(tmp_path: Path, case: str) -> None:
    change, words = LIES[case]
    path = patched(written(tmp_path / "train-0.tar", good(0)), change)
    with pytest.raises(DataError, match=words) as caught:
        tabulate(path)
    assert caught.value.where == str(path)


def test_a_shard_whose_checksum_is_made_right_again_is_read_twin(tmp_path: Path) -> None:
    path = patched(written(tmp_path / "train-0.tar", good(0)), lambda held: None)
    assert len(tabulate(path)) == 1


@pytest.mark.parametrize("place", [0, 5, 100, 124, 156, 257])
def test_a_flipped_bit_in_a_header_breaks_its_checksum(tmp_path: Path, place: int) -> None:
    path = written(tmp_path / "train-0.tar", good(0))
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match="checksum does not hold"):
        tabulate(path)


def test_sparse_files_and_sizes_in_pax_headers_are_refused(tmp_path: Path) -> None:
    for key, words in (("GNU.sparse.size", "a sparse file"), ("size", "a member of 9 bytes")):
        info, content = entry("0000.png", PICTURE)
        info.pax_headers = {key: "9"}
        path = tmp_path / f"{key}.tar"
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
            archive.addfile(info, io.BytesIO(content))
        with pytest.raises(DataError, match=words):
            tabulate(path)


def test_a_pax_path_that_leads_out_is_refused(tmp_path: Path) -> None:
    info, content = entry("fine.png", PICTURE)
    info.pax_headers = {"path": "../escaped.png"}
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(content))
    with pytest.raises(DataError, match="path out of the folder"):
        tabulate(path)


def test_a_huge_pax_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    info, content = entry("fine.png", PICTURE)
    info.pax_headers = {"comment": "x" * (2 * limits.TAR_HEADER_BYTES)}
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(content))
    with pytest.raises(DataError, match=f"where {limits.TAR_HEADER_BYTES:,} are read"):
        tabulate(path)


def test_limits_are_stated_in_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "train-0.tar", [*good(0), *good(1)])
    with monkeypatch.context() as smaller:
        smaller.setattr(limits, "TAR_MEMBERS", 3)
        with pytest.raises(DataError, match="more than 3 members"):
            tabulate(path)
    with monkeypatch.context() as smaller:
        smaller.setattr(limits, "PICTURE_BYTES", 10)
        with pytest.raises(DataError, match="at most 10 are read"):
            tabulate(path)
    with monkeypatch.context() as smaller:
        smaller.setattr(limits, "SAMPLE_BYTES", 10)
        with pytest.raises(DataError, match="no usable sample"):
            open_source(f"webdataset:{path}", root=tmp_path)
    assert len(tabulate(path)) == 2  # twin: within the limits it is read


@pytest.mark.parametrize("lead", [b"\x1f\x8b\x08\0", b"BZh9", b"\xfd7zXZ\0", b"(\xb5/\xfd"])
def test_a_compressed_shard_is_refused_with_what_to_do(tmp_path: Path, lead: bytes) -> None:
    path = tmp_path / "train-0.tar"
    path.write_bytes(lead + bytes(2000))
    with pytest.raises(DataError, match=r"a compressed tar.*gunzip"):
        tabulate(path)


@pytest.mark.parametrize("content", [b"", b"x", b"not a tar " * 200, bytes(511)])
def test_a_file_that_is_no_tar_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "train-0.tar"
    path.write_bytes(content)
    with pytest.raises(DataError, match="tar"):
        tabulate(path)


def test_pipes_devices_and_folders_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "folder.tar").mkdir()
    for path in (tmp_path / "pipe.tar", tmp_path / "folder.tar", Path("/dev/zero")):
        with pytest.raises(DataError, match="not a plain file"):
            tabulate(path)
    with pytest.raises(DataError, match="cannot be opened"):
        tabulate(tmp_path / "absent.tar")


def test_a_member_that_is_cut_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path / "train-0.tar", good(0))
    with open_tar(path) as descriptor, pytest.raises(DataError, match="0 of 5 bytes"):
        read_member(descriptor, Member("a.png", 10**9, 5), where=str(path))


DOCUMENTS = [
    b"",
    b"[]",
    b"3",
    b"{",
    b'{"labels": {"gender": NaN}}',
    b'{"labels": {"gender": 7}}',
    b'{"labels": {"gender": true}}',
    b'{"labels": {"gender": "sideways"}}',
    b'{"labels": {"landmarks5": [[1, 2]]}}',
    b'{"labels": {"landmarks5": [[1, 2], [1, 2], [1, 2], [1, 2], [1, 1e999]]}}',
    b'{"labels": {"age": [30, 20]}}',
    b'{"labels": {"age": "20-"}}',
    b'{"labels": {"beauty_score": 1.5}}',
    b'{"labels": {"identity": -4}}',
    b'{"labels": {"attributes": [2, 0, 0, 0]}}',
    b'{"labels": {"beauty_score": 1' + b"0" * 400 + b"}}",
    b'{"labels": {"age": 1' + b"0" * 400 + b"}}",
    b'{"box": [0, 0, 4, 1' + b"0" * 400 + b"]}",
    b'{"crop": [1, 2]}',
    b'{"crop": [8, 8, 0]}',
    b'{"box": [0, 0, -1, 4]}',
    b'{"crop": [8, 8, 1e400]}',
    b"[" * 100_000,
    b'{"a": ' + b"9" * 6000 + b"}",
    b"\xff\xfe",
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: repr(document[:30]))
def test_a_bad_document_leaves_its_sample_out_and_strict_names_it(tmp_path: Path, document: bytes) -> None:
    path = written(tmp_path / "train-0.tar", [*good(0), entry("0001.png", PICTURE), entry("0001.json", document)])
    corpus = open_source(f"webdataset:{path}", root=tmp_path)
    assert corpus.keys == ("train-0/0000",)
    assert [key for keys in corpus.skipped.values() for key in keys] == ["0001 (train-0.tar)"]
    with pytest.raises(DataError, match=r"train-0\.tar, sample '0001'"):
        open_source(f"webdataset:{path}", root=tmp_path, strict=True)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), count=st.integers(1, 12))
def test_bytes_changed_anywhere_are_read_or_refused_but_never_crash(tmp_path: Path, seed: int, count: int) -> None:
    path = tmp_path / "train-0.tar"
    written(path, [*good(0), *good(1)], form=tarfile.PAX_FORMAT)
    content, choose = bytearray(path.read_bytes()), random.Random(seed)
    for _ in range(count):
        content[choose.randrange(len(content))] = choose.randrange(256)
    path.write_bytes(content[: choose.choice([len(content), choose.randrange(len(content))])])
    with contextlib.suppress(DataError):
        corpus = open_source(f"webdataset:{path}", root=tmp_path)
        for index in range(len(corpus)):
            corpus.load(index)


INDEX = {
    "schema": 1,
    "kind": "shards",
    "key": "",
    "source": "x",
    "split": "train",
    "corpus": "x",
    "licence": "x",
    "research_only": False,
    "px": 16,
    "margin": 1.0,
    "shards": [{"name": "train-0.tar", "samples": 1, "bytes": 1, "sha256": ""}],
    "tasks": {},
    "skipped": {},
}


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"kind": "checkpoint"},
        {"shards": []},
        {"shards": [{"name": "../train-0.tar", "samples": 1, "bytes": 1, "sha256": ""}]},
        {"shards": [{"name": "/dev/zero", "samples": 1, "bytes": 1, "sha256": ""}]},
        {"shards": [{"name": "a.tar", "samples": -1, "bytes": 1, "sha256": ""}]},
        {"shards": [{"name": "a.tar", "samples": 1.5, "bytes": 1, "sha256": ""}]},
        {"shards": [{"name": "a.tar"}]},
        {"shards": INDEX["shards"] * 2},  # type: ignore[operator]
        {"shards": "train-0.tar"},
        {"tasks": {"gender": {"labelled": 1, "counts": [1]}}},
        {"tasks": {"landmarks5": {"labelled": 1, "shape": [[0, 0]]}}},
        {"tasks": {"gender": {"labelled": 1, "counts": [2**70, 1]}}},
        {"tasks": {"gender": {"labelled": 1, "counts": [0.5, 1]}}},
        {"tasks": {"landmarks5": {"labelled": 1, "shape": [[10**400, 0]] * 5}}},
        {"tasks": []},
        {"skipped": [1]},
        {"margin": "1"},
        {"px": True},
        {"research_only": "no"},
        {"scales": {"age": [1]}},
    ],
    ids=str,
)
def test_an_index_that_lies_is_an_error_that_names_it(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps({**INDEX, **change}))
    with pytest.raises(DataError, match=r"train\.json"):
        read_index(path)


def test_the_index_they_were_made_from_is_read_twin(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(INDEX))
    assert len(read_index(path)) == 1
