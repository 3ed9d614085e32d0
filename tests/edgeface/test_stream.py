"""A stream: the pack's batches, in an order of seed and epoch alone, each sample once, wherever it is begun."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeface.data import intact
from edgeface.data import stream as streaming
from edgeface.data.loader import Batch, Batches
from edgeface.data.pack import SURVEYS, Pack, cache_folder, pack
from edgeface.data.shard_writer import Plan, encode_picture, pack_shards
from edgeface.data.sources import open_source
from edgeface.data.stream import Stream, StreamBatches, mean_shape, once, open_stream
from edgeface.errors import ConfigError, DataError
from edgeface.specs import AugmentSpec

PX, MARGIN, COUNT = 24, 1.3, 60
TASKS = ("landmarks5", "gender", "age", "beauty_score", "identity", "attributes")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pack, Stream]:
    """The same faces as a pack and as a stream of shards of 8."""
    folder = tmp_path_factory.mktemp("faces")
    source = f"synthetic:{COUNT}@train"
    pack_shards(Plan(source=source, root=folder, px=PX, margin=MARGIN, shard_size=8), folder / "shards", workers=1)
    found = open_stream(f"webdataset:{folder / 'shards'}", px=PX, margin=MARGIN)
    assert found is not None
    return pack(open_source(source, root=folder), px=PX, margin=MARGIN, cache=folder), found


def batches(
    parts: Sequence[Pack | Stream], *, seed: int = 5, batch: int = 7, buffer: int = 20, rank: int = 0, world: int = 1
) -> StreamBatches:
    return StreamBatches(
        parts,
        tasks=TASKS,
        augment=AugmentSpec(),
        input_px=16,
        batch=batch,
        seed=seed,
        buffer=buffer,
        rank=rank,
        world=world,
    )


def same(one: Batch, other: Batch) -> bool:
    equal = torch.equal(one.ids, other.ids) and torch.equal(one.images, other.images)
    return equal and all(
        torch.allclose(values, other.labels[name], rtol=0, atol=0, equal_nan=True)
        for name, values in one.labels.items()
    )


def test_in_one_window_the_batches_are_the_packs_to_the_last_bit(packed: tuple[Pack, Stream]) -> None:
    whole, stream = packed
    plain = Batches([whole], tasks=TASKS, augment=AugmentSpec(), input_px=16, batch=7, seed=5)
    streamed = batches([stream], buffer=COUNT)
    assert streamed.steps_per_epoch == plain.steps_per_epoch
    for epoch in (0, 3):
        pairs = list(zip(plain.epoch(epoch), streamed.epoch(epoch), strict=True))
        assert len(pairs) == 8
        assert all(same(one, other) for one, other in pairs)
    assert not same(next(plain.epoch(0)), next(streamed.epoch(1)))  # twin
    assert not same(next(plain.epoch(0)), next(batches([stream], buffer=COUNT, seed=6).epoch(0)))


def test_what_is_counted_is_what_the_pack_counts(packed: tuple[Pack, Stream]) -> None:
    whole, stream = packed
    plain = Batches([whole], tasks=TASKS, augment=AugmentSpec(), input_px=16, batch=7, seed=5)
    streamed = batches([stream])
    assert streamed.people == plain.people == 15
    for task in ("gender", "attributes"):
        assert torch.equal(streamed.class_counts(task), plain.class_counts(task))
    assert np.allclose(mean_shape("landmarks5", [stream]), mean_shape("landmarks5", [whole]), rtol=0, atol=1e-7)
    assert len(stream.keys) == COUNT
    assert stream.keys[9] == "train-000001.tar, sample 1"


def test_samples_of_a_batch_look_the_same_whatever_the_window(packed: tuple[Pack, Stream]) -> None:
    streamed = batches([packed[1]])
    chosen = np.array([3, 59, 17])
    (one,) = (streamed.at(chosen, epoch=2),)
    other = batches([packed[1]], buffer=COUNT).at(chosen, epoch=2)
    assert same(one, other)


@pytest.mark.parametrize("buffer", [1, 8, 20, 33, 1000])
def test_each_sample_comes_once_an_epoch_and_orders_differ(packed: tuple[Pack, Stream], buffer: int) -> None:
    streamed = batches([packed[1]], batch=4, buffer=buffer)
    orders = [np.concatenate(list(streamed.ids(epoch))) for epoch in range(3)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(COUNT))
    assert not np.array_equal(orders[0], orders[1])
    assert np.array_equal(orders[2], np.concatenate(list(batches([packed[1]], batch=4, buffer=buffer).ids(2))))


def test_a_window_shuffles_across_shards_and_is_no_larger_than_the_buffer(packed: tuple[Pack, Stream]) -> None:
    streamed = batches([packed[1]], buffer=19)
    windows = streamed.windows(0)
    assert [len(window) for window in windows[:-1]] == [2] * (len(windows) - 1)  # 8 + 8 fit 19, a third does not
    order = streamed.order(windows[0], 0)
    owners = order // 8
    assert len(set(owners[:6].tolist())) == 2  # both shards from the start, not one after the other


def test_any_step_of_an_epoch_can_be_begun_with(packed: tuple[Pack, Stream]) -> None:
    streamed = batches([packed[1]])
    whole = list(streamed.epoch(1))
    for start in range(len(whole) + 1):
        rest = list(batches([packed[1]]).epoch(1, start_step=start))
        assert len(rest) == len(whole) - start
        assert all(same(one, other) for one, other in zip(whole[start:], rest, strict=True))
    assert not same(whole[0], whole[1])  # twin


@pytest.mark.parametrize("world", [2, 4])
def test_the_shares_of_several_processes_are_the_batch(packed: tuple[Pack, Stream], world: int) -> None:
    whole = list(batches([packed[1]], batch=8).epoch(0))
    shares = [batches([packed[1]], batch=8, rank=rank, world=world).epoch(0) for rank in range(world)]
    for one, *parts in zip(whole, *shares, strict=True):
        assert torch.equal(torch.cat([part.ids for part in parts]), one.ids)
        assert torch.equal(torch.cat([part.images for part in parts]), one.images)


@pytest.mark.parametrize("world", [1, 2, 3, 5, 11])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_pass_covers_every_sample_once_whatever_the_number_of_processes_and_threads(
    packed: tuple[Pack, Stream], world: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "DECODERS", threads)
    stream = packed[1]
    found: dict[str, list[np.ndarray]] = {}
    for rank in range(world):
        for shard, pieces in once(stream, rank=rank, world=world, chunk=3):
            assert shard.name not in found
            found[shard.name] = list(pieces)
    crops = np.concatenate([piece for name in sorted(found) for piece in found[name]])
    assert np.array_equal(crops, packed[0].images)


def test_a_process_that_is_left_out_leaves_samples_out_twin(packed: tuple[Pack, Stream]) -> None:
    seen = [shard.name for rank in (0, 2) for shard, _ in once(packed[1], rank=rank, world=3)]
    assert 0 < len(seen) < len(packed[1].shards.shards)


def test_packs_and_streams_mix_and_number_their_people_on(packed: tuple[Pack, Stream]) -> None:
    whole, stream = packed
    mixed = batches([whole, stream], buffer=500)
    assert len(mixed) == 2 * COUNT
    assert mixed.people == 30
    assert torch.equal(mixed.class_counts("gender"), 2 * batches([stream]).class_counts("gender"))
    order = np.concatenate(list(mixed.ids(0)))
    assert len(set(order.tolist())) == len(order) == 2 * COUNT // 7 * 7
    rows = np.array([4, 13])
    one, other = mixed.at(rows, epoch=0), mixed.at(rows + COUNT, epoch=0)
    assert torch.equal(one.labels["identity"] + 15, other.labels["identity"])
    assert torch.equal(one.labels["gender"], other.labels["gender"])


def test_another_size_or_margin_is_cut_from_the_stored_crop(packed: tuple[Pack, Stream]) -> None:
    stream = Stream(shards=packed[1].shards, px=16, margin=1.0)
    (images,) = [next(pieces) for shard, pieces in once(stream, chunk=8) if shard.name == "train-000000"]
    assert images.shape == (8, 16, 16, 3)
    corpus = open_source(stream.source, root=Path())
    expected = pack(corpus.select(range(8)), px=16, margin=1.0, cache=stream.shards.shards[0].path.parent / "cache")
    assert np.array_equal(images, expected.images)
    labels = batches([Stream(shards=packed[1].shards, px=16, margin=1.0)]).at(np.arange(8), epoch=0).labels
    assert torch.isfinite(labels["landmarks5"]).all()


def small(folder: Path, told: Sequence[dict[str, object]], *, broken: int = -1) -> Path:
    with tarfile.open(folder / "train-0.tar", "w") as archive:
        for number, document in enumerate(told):
            picture = encode_picture(np.full((PX, PX, 3), number, np.uint8), "png")
            for suffix, content in (("png", picture), ("json", json.dumps(document).encode())):
                if number == broken and suffix == "png":
                    content = content[:-30]
                info = tarfile.TarInfo(f"{number}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return folder


def opened(folder: Path) -> StreamBatches:
    stream = open_stream(f"webdataset:{folder}", px=PX, margin=1.0)
    assert stream is not None
    return StreamBatches([stream], tasks=["gender"], augment=AugmentSpec(), input_px=16, batch=2, seed=0)


CROP = {"crop": [PX / 2, PX / 2, PX]}


def test_a_picture_that_breaks_in_training_is_an_error_that_names_shard_and_sample(tmp_path: Path) -> None:
    told = [{**CROP, "gender": 1}] * 4
    assert len(list(opened(small(tmp_path, told)).epoch(0))) == 2  # twin: whole ones are read
    with pytest.raises(DataError, match=r"train-0\.tar, sample '2'"):
        list(opened(small(tmp_path, told, broken=2)).epoch(0))


def test_samples_without_a_usable_description_are_left_out_and_the_others_keep_their_places(tmp_path: Path) -> None:
    told = [{**CROP, "gender": number % 2 if number != 1 else "sideways"} for number in range(5)]
    streamed = opened(small(tmp_path, told))
    assert len(streamed) == 4
    batch = streamed.at(np.arange(4), epoch=0)
    assert batch.labels["gender"].tolist() == [0, 0, 1, 0]


def test_a_shard_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    streamed = opened(small(tmp_path, [{**CROP, "gender": 1}] * 4))
    small(tmp_path, [{**CROP, "gender": 1}] * 3)
    with pytest.raises(DataError, match=r"train-0\.tar: 3 samples.*the shard has changed"):
        list(streamed.epoch(0))


def plain(folder: Path) -> Path:
    """Indexed shards of pictures that hold no checksum of their own."""
    chosen = Plan(source="synthetic:8@train", root=folder, px=PX, margin=1.0, shard_size=4, encoding="ppm")
    pack_shards(chosen, folder / "shards", workers=1)
    return folder / "shards"


def blackened(shard: Path) -> bytes:
    """The bytes of a shard whose first picture is black."""
    with tarfile.open(shard) as archive:
        picture, content = archive.getmembers()[0], bytearray(shard.read_bytes())
    content[picture.offset_data : picture.offset_data + picture.size] = encode_picture(
        np.zeros((PX, PX, 3), np.uint8), "ppm"
    )
    return bytes(content)


def test_a_picture_changed_within_a_shard_is_noticed_before_and_while_it_is_read(tmp_path: Path) -> None:
    folder = plain(tmp_path)
    first, _ = sorted(folder.glob("*.tar"))
    whole = first.read_bytes()
    stream = open_stream(f"webdataset:{folder}", px=PX, margin=1.0)
    assert stream is not None
    stream.require_intact()
    batches = StreamBatches([stream], tasks=["gender"], augment=AugmentSpec(), input_px=16, batch=4, seed=0)
    assert len(list(batches.epoch(0))) == 2  # twin: as they were written they are read
    content = stream.content_hash
    first.write_bytes(blackened(first))
    assert first.stat().st_size == len(whole)
    again = open_stream(f"webdataset:{folder}", px=PX, margin=1.0)
    assert again is not None
    assert again.content_hash == content  # which is why the bytes have to be looked at
    for reads in (
        again.require_intact,
        lambda: list(batches.epoch(1)),
        lambda: [list(pieces) for _, pieces in once(again)],
    ):
        with pytest.raises(DataError, match=rf"the bytes of {first.name} have changed"):
            reads()
    first.write_bytes(whole)  # put back, and with other times: the bytes decide
    again.require_intact()
    assert len(list(batches.epoch(1))) == 2


def test_a_shard_is_hashed_once_for_all_runs_until_its_file_is_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "cache"))
    folder, hashed = plain(tmp_path), []
    digest = intact._hashed
    monkeypatch.setattr(intact, "_hashed", lambda shard, opened: (hashed.append(shard), digest(shard, opened))[1])

    def look() -> int:
        hashed.clear()
        stream = open_stream(f"webdataset:{folder}", px=PX, margin=1.0)
        assert stream is not None
        stream.require_intact()
        for _, pieces in once(stream):
            assert sum(map(len, pieces)) == 4
        return len(hashed)

    assert [look(), look()] == [2, 0]
    first, *_ = sorted(folder.glob("*.tar"))
    os.utime(first, ns=(1, 1))
    assert [look(), look()] == [1, 0]
    (note,) = (cache_folder() / SURVEYS).glob("intact-*.json")
    for damaged in ("{", "[]", '{"stamps": [1, 2]}', '{"stamps": []}'):
        note.write_text(damaged)
        assert [look(), look()] == [2, 0]


def test_what_a_stream_cannot_do_is_refused(packed: tuple[Pack, Stream]) -> None:
    stream = packed[1]
    with pytest.raises(ConfigError, match="at least one batch of 61"):
        batches([stream], batch=61)
    with pytest.raises(ConfigError, match="no source labels 'attributes40'"):
        StreamBatches([stream], tasks=["attributes40"], augment=AugmentSpec(), input_px=16, batch=4, seed=0)
    with pytest.raises(ConfigError, match="one size and one margin"):
        batches([stream, Stream(shards=stream.shards, px=PX, margin=1.0)])


def test_labels_are_derived_while_they_are_read(packed: tuple[Pack, Stream]) -> None:
    stream = Stream(shards=packed[1].shards, px=PX, margin=MARGIN, derive=("eyes_occluded",))
    assert "eyes_occluded" in stream.labels
    assert "eyes_occluded" not in packed[1].labels
    streamed = StreamBatches([stream], tasks=["eyes_occluded"], augment=AugmentSpec(), input_px=16, batch=4, seed=0)
    labels = streamed.at(np.arange(COUNT), epoch=0).labels["eyes_occluded"]
    assert set(labels.unique().tolist()) >= {0}
    with pytest.raises(ConfigError, match="derived from streamed ones, and not counted"):
        streamed.class_counts("eyes_occluded")


def test_only_the_shards_of_a_window_are_in_memory(
    packed: tuple[Pack, Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "OPEN", 1)
    streamed = batches([packed[1]], buffer=8)
    for _ in streamed.epoch(0):
        assert len(streamed._tables._kept) <= 2
    assert len(list(streamed.windows(0))) == len(packed[1].shards.shards)
