"""Packs: the crops of `crop_image`, kept once, whole or not at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from threadpoolctl import threadpool_info, threadpool_limits  # type: ignore[import-untyped]

from edgeface.data import shard_writer
from edgeface.data.corpus import Corpus
from edgeface.data.geometry import crop_image
from edgeface.data.pack import Pack, cache_folder, clear_cache, copy_pack, pack
from edgeface.data.shard_writer import Plan
from edgeface.errors import DataError, OutputError

Load = Callable[[int], NDArray[np.uint8]]


def picture(index: int) -> NDArray[np.uint8]:
    return np.random.default_rng(index).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def corpus(count: int = 5, *, load: Load = picture, **changes: object) -> Corpus:
    points = np.random.default_rng(0).uniform(10, 30, (count, 5, 2)).astype(np.float32)
    points[1] = np.nan
    fields: dict[str, object] = {
        "name": "made",
        "source": "made@train",
        "split": "train",
        "licence": "research only",
        "research_only": True,
        "keys": tuple(f"{i}.png" for i in range(count)),
        "people": tuple(f"person {i}" for i in range(count)),
        "crops": np.asarray([[20 + i, 18, 16 + i] for i in range(count)], np.float32),
        "labels": {"pose": np.arange(count) % 5, "landmarks5": points},
        "groups": {"tone": np.asarray(["dark" if i % 2 else "" for i in range(count)])},
        "skipped": {"short line": ("list.txt:7",)},
        "fingerprint": "1",
        **changes,
    }
    return Corpus(**fields, load=load)  # type: ignore[arg-type]


def packed(made: Corpus, cache: Path, *, px: int = 12, margin: float = 1.25, strict: bool = False) -> Pack:
    return pack(made, px=px, margin=margin, cache=cache, strict=strict)


def blas_threads() -> int:
    return max(int(library["num_threads"]) for library in threadpool_info() if library["user_api"] == "blas")


def refuse(index: int) -> NDArray[np.uint8]:
    raise AssertionError(f"picture {index} was decoded again")


def torn(index: int) -> NDArray[np.uint8]:
    if index == 2:
        raise DataError("the picture cannot be read (truncated)", where="2.png")
    return picture(index)


def test_a_pack_holds_the_crops_of_crop_image(tmp_path: Path) -> None:
    made = corpus()
    result = packed(made, tmp_path)
    assert result.images.shape == (5, 12, 12, 3)
    for index in range(5):
        assert np.array_equal(result.images[index], crop_image(picture(index), made.crops[index], px=12, margin=1.25))
    assert not np.array_equal(result.images[0], crop_image(picture(0), made.crops[0], px=12, margin=1.2))
    assert (result.keys, result.people) == (made.keys, made.people)
    assert result.research_only
    assert result.licence == "research only"
    assert result.groups["tone"].tolist() == ["", "dark", "", "dark", ""]


def test_landmarks_are_in_sides_of_the_packed_crop(tmp_path: Path) -> None:
    made = corpus()
    result = packed(made, tmp_path)
    x, y, side = made.crops[3].astype(np.float64)
    corner = np.asarray([x, y]) - side * 1.25 / 2
    expected = (made.labels["landmarks5"][3] - corner) / (side * 1.25)
    # Computed in float64 and kept in float32: 6e-8 of numbers around 1.
    assert np.allclose(result.labels["landmarks5"][3], expected, rtol=0, atol=1e-6)
    assert not np.allclose(result.labels["landmarks5"][3] / 1.25, expected, rtol=0, atol=1e-2)
    assert np.isnan(result.labels["landmarks5"][1]).all()
    assert np.array_equal(result.labels["pose"], made.labels["pose"])


def test_the_second_call_decodes_nothing(tmp_path: Path) -> None:
    first = packed(corpus(), tmp_path)
    second = packed(corpus(load=refuse), tmp_path)
    assert np.array_equal(first.images, second.images)
    assert first.content_hash == second.content_hash
    assert first.skipped == second.skipped


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "2"},
        {"crops": np.full((5, 3), 20, np.float32)},
        {"keys": ("a", "b", "c", "d", "e")},
        {"labels": {"pose": np.zeros(5, np.int64)}},
        {"groups": {}},
    ],
)
def test_any_other_input_is_another_pack(tmp_path: Path, change: dict[str, object]) -> None:
    first = packed(corpus(), tmp_path)
    other = packed(corpus(**change), tmp_path)
    assert first.folder != other.folder


def test_another_size_or_margin_is_another_pack(tmp_path: Path) -> None:
    folders = {
        packed(corpus(), tmp_path).folder,
        packed(corpus(), tmp_path, px=13).folder,
        packed(corpus(), tmp_path, margin=1.0).folder,
    }
    assert len(folders) == 3


def test_the_content_hash_follows_pixels(tmp_path: Path) -> None:
    first = packed(corpus(), tmp_path / "a")
    assert packed(corpus(), tmp_path / "b").content_hash == first.content_hash
    brighter = packed(corpus(load=lambda index: picture(index) | 1), tmp_path / "c")
    assert brighter.content_hash != first.content_hash


def test_a_torn_picture_is_listed_and_left_out(tmp_path: Path) -> None:
    result = packed(corpus(load=torn), tmp_path)
    assert result.keys == ("0.png", "1.png", "3.png", "4.png")
    assert result.labels["pose"].tolist() == [0, 1, 3, 4]
    assert len(result.images) == 4
    assert np.array_equal(result.images[2], crop_image(picture(3), corpus().crops[3], px=12, margin=1.25))
    assert result.skipped["short line"] == ("list.txt:7",)
    (listed,) = result.skipped["undecodable picture"]
    assert "2.png" in listed


def test_strict_raises_for_a_torn_picture_and_keeps_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="truncated"):
        packed(corpus(load=torn), tmp_path, strict=True)
    assert not list((tmp_path / "packs").iterdir())


def test_strict_raises_although_a_pack_without_it_is_kept(tmp_path: Path) -> None:
    packed(corpus(load=torn), tmp_path)
    with pytest.raises(DataError, match="truncated"):
        packed(corpus(load=torn), tmp_path, strict=True)


def test_nothing_but_torn_pictures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of 1 pictures can be read"):
        packed(corpus(load=torn).select([2]), tmp_path)


def test_a_truncated_jpeg_is_torn(tmp_path: Path) -> None:
    from PIL import Image

    from edgeface.data.images import read_image, read_size

    whole = tmp_path / "whole.jpg"
    Image.fromarray(picture(0)).save(whole)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert read_size(cut) == (50, 40)  # the header is well
    with pytest.raises(DataError, match="truncated"):
        read_image(cut)
    assert read_image(whole).shape == (40, 50, 3)


def test_a_picture_with_16_bits_is_refused_rather_than_clipped(tmp_path: Path) -> None:
    from PIL import Image

    from edgeface.data.images import read_image

    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match="8 bits per channel"):
        read_image(tmp_path / "deep.png")


def test_a_turned_photo_is_read_upright(tmp_path: Path) -> None:
    from PIL import Image

    from edgeface.data.images import read_image, read_size

    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise
    Image.fromarray(picture(0)).save(tmp_path / "turned.png", exif=exif)
    assert read_size(tmp_path / "turned.png") == (40, 50)
    assert np.array_equal(read_image(tmp_path / "turned.png"), np.rot90(picture(0), k=-1))
    assert not np.array_equal(read_image(tmp_path / "turned.png"), np.rot90(picture(0), k=1))


def test_an_interrupted_pack_leaves_nothing_behind(tmp_path: Path) -> None:
    def stopped(index: int) -> NDArray[np.uint8]:
        if index == 3:
            raise KeyboardInterrupt
        return picture(index)

    with pytest.raises(KeyboardInterrupt):
        packed(corpus(load=stopped), tmp_path)
    assert not list((tmp_path / "packs").iterdir())
    assert len(packed(corpus(), tmp_path)) == 5


def test_a_cache_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="EDGEFACE_CACHE"):
        packed(corpus(), tmp_path / "file")


def test_a_full_disk_is_an_output_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OutputError, match="no space left"):
        packed(corpus(), tmp_path)
    assert not list((tmp_path / "packs").iterdir())


def test_a_damaged_pack_says_how_to_clear_it(tmp_path: Path) -> None:
    folder = packed(corpus(), tmp_path).folder
    (folder / "images.npy").write_bytes(b"nothing")
    with pytest.raises(DataError, match="edgeface data clear"):
        packed(corpus(), tmp_path)


def test_pictures_in_batches_give_the_same_pack(tmp_path: Path) -> None:
    def many(wanted: NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.stack([picture(int(i)) for i in wanted])

    one_by_one = packed(corpus(130), tmp_path / "a")
    batched = packed(dataclasses.replace(corpus(130, load=refuse), load_many=many), tmp_path / "b")
    assert np.array_equal(one_by_one.images, batched.images)
    assert one_by_one.content_hash == batched.content_hash


@pytest.mark.parametrize("way", ["pack", "shards"])
def test_pictures_are_cut_with_one_blas_thread_and_the_others_come_back(way: str, tmp_path: Path) -> None:
    seen: list[int] = []

    def load(index: int) -> NDArray[np.uint8]:
        seen.append(blas_threads())
        return picture(index)

    def make() -> None:
        if way == "pack":
            packed(corpus(load=load), tmp_path / "cache")
        else:
            plan = Plan(source="made@train", root=tmp_path, px=12, margin=1.25)
            shard_writer._write_shard(plan, corpus(load=load), 0, tmp_path / "shard.tar", key="k")

    with threadpool_limits(limits=2, user_api="blas"):
        make()
        assert blas_threads() == 2, "the twin: without the limit there are two"
    assert seen == [1] * 5


def test_progress_counts_to_the_total(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    pack(corpus(130), px=8, margin=1.0, cache=tmp_path, progress=lambda done, total: told.append((done, total)))
    assert told == [(64, 130), (128, 130), (130, 130)]


def test_clearing_frees_the_packs(tmp_path: Path) -> None:
    folder = packed(corpus(), tmp_path).folder
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert clear_cache(tmp_path) == size > 0
    assert not folder.exists()
    assert clear_cache(tmp_path) == 0


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    assert cache_folder(tmp_path / "mine") == tmp_path / "mine"
    monkeypatch.delenv("EDGEFACE_CACHE")
    assert cache_folder().name == "edgeface"


def test_a_pack_is_copied_whole_and_over_nothing(tmp_path: Path) -> None:
    result = packed(corpus(), tmp_path)
    folder = copy_pack(result, tmp_path / "out")
    assert np.array_equal(np.load(folder / "images.npy"), result.images)
    with pytest.raises(OutputError, match="not empty"):
        copy_pack(result, tmp_path / "out")
