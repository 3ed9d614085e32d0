"""Tables of places: what the stream reads by them is what it reads by the headers, and a table that lies is noticed."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeface import limits
from edgeface.data import shard_writer, shards
from edgeface.data.places import SUFFIX, encode_places, places_file, read_places
from edgeface.data.shard_writer import ENCODINGS, Plan, pack_shards
from edgeface.data.shards import Shard, open_shards, read_index, read_pictures, tabulate
from edgeface.data.sources import open_source
from edgeface.data.stream import StreamBatches, open_stream
from edgeface.data.tar import member_at, members, open_tar
from edgeface.errors import DataError
from edgeface.files import sha256_file
from edgeface.specs import AugmentSpec

PX, MARGIN, COUNT = 24, 1.3, 20
Arrays = dict[str, NDArray[Any]]


def plan(*, encoding: str = "png") -> Plan:
    return Plan(source=f"synthetic:{COUNT}@train", root=Path(), px=PX, margin=MARGIN, shard_size=8, encoding=encoding)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    pack_shards(plan(), folder, workers=1)
    return folder


@pytest.fixture
def packed(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(written, tmp_path / "shards")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def first(folder: Path) -> Shard:
    return open_shards(folder, source="x", split="train").shards[0]


def epoch_of(folder: Path, *, number: int = 0) -> list[torch.Tensor]:
    """Everything the batches of an epoch hold."""
    stream = open_stream(f"webdataset:{folder}@train", px=PX, margin=MARGIN)
    assert stream is not None
    tasks = ["landmarks5", "gender", "age"]
    batches = StreamBatches([stream], tasks=tasks, augment=AugmentSpec(), input_px=16, batch=4, seed=3, buffer=16)
    return [
        values
        for batch in batches.epoch(number)
        for values in (batch.ids, batch.images, *(batch.labels[name].nan_to_num(-1) for name in tasks))
    ]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def refuse_to_walk(path: Path) -> None:
    raise AssertionError(f"the headers of {path} were gone through")


def without_tables(folder: Path) -> Path:
    for file in folder.glob(f"*{SUFFIX}"):
        file.unlink()
    return folder


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_table_says_what_the_headers_say(tmp_path: Path, encoding: str) -> None:
    found = pack_shards(plan(encoding=encoding), tmp_path, workers=1)
    for shard in found.shards:
        assert places_file(shard.path).is_file()
        table, walked = shard.whole_table(), tabulate(shard.path)
        assert (table.names, dict(table.columns)) == (walked.names, dict(walked.columns))
        for one, other in ((table.spans, walked.spans), (table.places, walked.places)):
            assert one.dtype == other.dtype
            assert np.array_equal(one, other)
    one, other, _ = (shard.whole_table() for shard in found.shards)
    assert not np.array_equal(one.places, other.places)  # twin


def test_batches_are_the_same_with_tables_and_without(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as never:
        never.setattr(shards, "tabulate", refuse_to_walk)
        tabled = epoch_of(packed)
        assert not same(tabled, epoch_of(packed, number=1))  # twin: another epoch has other batches
    without_tables(packed)
    assert same(tabled, epoch_of(packed))
    monkeypatch.setattr(shards, "tabulate", refuse_to_walk)  # twin: without tables headers are gone through
    with pytest.raises(AssertionError, match="were gone through"):
        epoch_of(packed)


def test_shards_of_an_earlier_version_are_walked_and_get_tables_when_they_are_packed_again(
    written: Path, packed: Path
) -> None:
    without_tables(packed)
    index = json.loads((packed / "train.json").read_text())
    for entry in index["shards"]:
        del entry["places"]
    (packed / "train.json").write_text(json.dumps(index))
    assert same(epoch_of(packed), epoch_of(written))
    assert open_shards(packed, source="x").content_hash == open_shards(written, source="x").content_hash
    pack_shards(plan(), packed, workers=1)
    assert contents(packed) == contents(written)


class Killed(BaseException):
    """Stands for a process that ends here."""


@pytest.mark.parametrize("after", ["write_bytes", "write_index"])
def test_a_kill_around_a_table_leaves_nothing_that_is_taken_for_whole(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as dying:
        dying.setattr(shard_writer, after, killed)
        with pytest.raises(Killed):
            pack_shards(plan(), tmp_path, workers=1)
    assert not (tmp_path / "train.json").exists()
    assert (tmp_path / "train-000000.tar").exists()  # twin: it did end there
    pack_shards(plan(), tmp_path, workers=1)
    assert contents(tmp_path) == contents(written)


def test_a_damaged_table_is_written_again_by_who_packs_again(written: Path, packed: Path) -> None:
    places_file(first(packed).path).write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"train-000000\.tar: a table of places, train-000000\.places\.npz"):
        epoch_of(packed)
    pack_shards(plan(), packed, workers=1)
    assert contents(packed) == contents(written)


def retold(folder: Path, change: Callable[[Arrays], object], *, sha256: str = "") -> Shard:
    """The first shard with a table that says something else, whose digest the index states."""
    file = places_file(first(folder).path)
    with np.load(file) as held:
        arrays = {name: held[name].copy() for name in held.files}
    change(arrays)
    np.savez(file, allow_pickle=True, **arrays)  # type: ignore[arg-type]  # a sequence of arrays by name
    index = json.loads((folder / "train.json").read_text())
    index["shards"][0]["places"] = sha256 or sha256_file(file)
    (folder / "train.json").write_text(json.dumps(index))
    return first(folder)


def read_all(shard: Shard) -> list[NDArray[np.uint8]]:
    table = shard.table()
    with open_tar(shard.path) as descriptor:
        for row in range(len(table)):
            table.read(descriptor, row, "json")
        return list(read_pictures(descriptor, table, range(len(table))))


def swap(name: str, one: Any, other: Any) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        values = arrays[name]
        values[one], values[other] = values[other].copy(), values[one].copy()

    return change


def put(name: str, place: Any, value: int) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[name][place] = value

    return change


def become(**values: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        for name, made in values.items():
            arrays[name] = made(arrays[name])

    return change


LIES: dict[str, tuple[Callable[[Arrays], object], str]] = {
    "another name": (put("names", 7, ord("9")), r"of sample '00000009'"),
    "two names swapped": (swap("names", 7, 15), r"of sample '00000001'"),
    "a name that is no ASCII": (put("names", 0, 200), "can't decode byte"),
    "a picture a byte shorter": (lambda arrays: put("sizes", (0, 0), int(arrays["sizes"][0, 0]) - 1)(arrays), "bytes"),
    "a picture longer than the shard": (put("sizes", (0, 0), 1 << 24), "its members end at byte"),
    "picture and description swapped": (swap("sizes", (0, 0), (0, 1)), "no tar header|as the table"),
    "a picture beyond the limit": (put("sizes", (3, 0), limits.PICTURE_BYTES + 1), "a picture of 268,435,457 bytes"),
    "a description beyond the limit": (put("sizes", (3, 1), limits.SAMPLE_BYTES + 1), "a description of 1,048,577"),
    "a sample less": (become(sizes=lambda sizes: sizes[:-1]), "arrays of"),
    "a whole sample less": (
        become(sizes=lambda sizes: sizes[:-1], lengths=lambda lengths: lengths[:-1], names=lambda names: names[:-8]),
        "its members end at byte|7 samples",
    ),
    "no sample": (become(**{name: lambda values: values[:0] for name in ("names", "lengths", "sizes")}), "end at byte"),
    "names longer than they are": (put("lengths", 0, 9), "their lengths add up to 65"),
    "an empty name": (put("lengths", 0, 0), "empty or longer"),
    "names of two axes": (become(names=lambda names: names[None]), "arrays of"),
    "lengths of no axis": (become(lengths=lambda lengths: lengths[0]), "arrays of"),
    "sizes as numbers with a point": (become(sizes=lambda sizes: sizes.astype(float)), "other types"),
    "Python objects": (become(sizes=lambda sizes: sizes.astype(object)), "holds Python objects"),
    "no sizes": (lambda arrays: arrays.pop("sizes"), "sizes"),
}


@pytest.mark.parametrize("case", LIES)
def test_a_table_that_lies_is_an_error_that_names_the_shard(packed: Path, case: str) -> None:
    change, words = LIES[case]
    shard = retold(packed, change)
    with pytest.raises(DataError, match=words) as caught:
        read_all(shard)
    assert caught.value.where == str(shard.path)


def test_the_same_table_written_again_is_believed_twin(written: Path, packed: Path) -> None:
    shard = retold(packed, lambda arrays: None)
    assert np.array_equal(read_all(shard), read_all(first(written)))
    with pytest.raises(DataError, match="its sha256 is not the one that the index file states"):
        read_all(retold(packed, lambda arrays: None, sha256="0" * 64))


def test_more_members_than_the_limit_and_larger_tables_are_refused(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = first(packed)
    with monkeypatch.context() as smaller:
        smaller.setattr(limits, "TAR_MEMBERS", 15)
        with pytest.raises(DataError, match="16 members, where at most 15 are read"):
            shard.table()
    with monkeypatch.context() as smaller:
        smaller.setattr(limits, "PLACES_BYTES", 100)
        with pytest.raises(DataError, match="where at most 100 are read"):
            shard.table()
    assert len(shard.table()) == 8  # twin


def test_a_shard_that_was_replaced_by_one_of_its_size_is_noticed(packed: Path) -> None:
    shard = first(packed)
    with tarfile.open(shard.path) as archive:
        held = [(info.name, archive.extractfile(info).read()) for info in archive]  # type: ignore[union-attr]
    with tarfile.open(shard.path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in [*held[2:], *held[:2]]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    assert shard.path.stat().st_size == shard.size_bytes
    with pytest.raises(DataError, match=r"train-000000\.tar: (member '00000001\.json'|no tar header)"):
        read_all(shard)
    with shard.path.open("ab") as stream:
        stream.write(bytes(512))
    with pytest.raises(DataError, match="its members end at byte"):
        read_all(shard)


def test_a_picture_in_the_place_of_a_description_is_noticed(packed: Path) -> None:
    shard = first(packed)
    table = shard.table()
    turned = replace(table, places=np.ascontiguousarray(table.places[:, ::-1]))
    with open_tar(shard.path) as descriptor:
        assert table.read(descriptor, 0, "picture")  # twin
        with pytest.raises(DataError, match=r"member '00000000\.json'.*the picture of sample '00000000'"):
            turned.read(descriptor, 0, "picture")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_member_read_by_its_place_is_the_member_of_the_walk(tmp_path: Path, form: int) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=form) as archive:
        for number, size in enumerate((0, 1, 511, 512, 513)):
            info = tarfile.TarInfo(f"a/{number}.png")
            info.size = size
            archive.addfile(info, io.BytesIO(bytes([65 + number]) * size))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        place_of_link = archive.offset
        archive.addfile(link)
    with open_tar(path) as descriptor:
        found = list(itertools.islice(members(descriptor, path), 5))
        assert [member.size for member in found] == [0, 1, 511, 512, 513]
        assert [member_at(descriptor, path, member.offset) for member in found] == found
        with pytest.raises(DataError, match=r"'link\.png' is a symbolic link"):
            member_at(descriptor, path, place_of_link + 512)
        for place in (0, 100, 513, found[-1].offset + 512, 10**9):  # twins
            with pytest.raises(DataError, match="no tar header"):
                member_at(descriptor, path, place)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_bytes_of_a_table_changed_anywhere_are_refused_or_change_nothing(
    written: Path, tmp_path: Path, data: st.DataObject
) -> None:
    shard = first(written)
    content = bytearray(places_file(shard.path).read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    spoilt = tmp_path / shard.path.name
    shutil.copyfile(shard.path, spoilt)
    places_file(spoilt).write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2]))])
    told = replace(shard, path=spoilt, places_sha256=sha256_file(places_file(spoilt)))
    with contextlib.suppress(DataError):
        assert np.array_equal(read_all(told), read_all(shard))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    samples=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 2000)), min_size=1, max_size=20),
    width=st.integers(1, 9),
)
def test_places_come_back_as_they_were_written(tmp_path: Path, samples: list[tuple[int, int]], width: int) -> None:
    names = [f"{number:0{width}d}" for number in range(len(samples))]
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, sizes in zip(names, samples, strict=True):
            for suffix, size in zip(("png", "json"), sizes, strict=True):
                info = tarfile.TarInfo(f"{name}.{suffix}")
                info.size = size
                archive.addfile(info, io.BytesIO(bytes(size)))
    walked = tabulate(path)
    places_file(path).write_bytes(encode_places(walked.names, walked.spans, walked.places))
    found = read_places(path, sha256=sha256_file(places_file(path)), shard_bytes=path.stat().st_size)
    assert found is not None
    assert found[0] == walked.names
    assert np.array_equal(found[1], walked.spans)
    assert np.array_equal(found[2], walked.places)


def test_a_corpus_in_memory_is_the_same_with_tables_and_without(packed: Path, tmp_path: Path) -> None:
    one = open_source(f"webdataset:{packed}@train", root=tmp_path)
    pictures = [one.load(index) for index in range(len(one))]
    other = open_source(f"webdataset:{without_tables(packed)}@train", root=tmp_path)
    assert (one.keys, one.people) == (other.keys, other.people)
    assert np.array_equal(pictures, [other.load(index) for index in range(len(other))])
    assert not np.array_equal(pictures[0], pictures[1])  # twin


def test_the_index_states_each_table(packed: Path) -> None:
    for shard in read_index(packed / "train.json").shards:
        assert sha256_file(places_file(shard.path)) == shard.places_sha256
    assert len({shard.places_sha256 for shard in read_index(packed / "train.json").shards}) == 3  # twin
