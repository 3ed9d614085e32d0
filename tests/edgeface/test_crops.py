"""Scoring on shards: the figures of scoring in memory, every sample once, and never more than a few batches decoded."""

from __future__ import annotations

import gc
import io
import json
import tarfile
import threading
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from distill.stages import TrainingData
from edgeface.data import crops as cropping
from edgeface.data.corpus import Texts
from edgeface.data.crops import StreamedCrops, evaluation_crops
from edgeface.data.pack import DECODERS, UNDECODABLE, Pack, cache_folder, in_batches, pack
from edgeface.data.shard_writer import Plan, encode_picture, pack_shards
from edgeface.data.sources import open_source
from edgeface.errors import DataError
from edgeface.evaluate import Evaluation, Outputs, evaluate, evaluation_pack
from edgeface.specs import ModelSpec, output_spec

PX, COUNT = 16, 60
SHAPE = ((0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8))
SPEC = ModelSpec(
    name="sums",
    input_px=PX,
    outputs=(
        output_spec("landmarks5", mean_shape=SHAPE),
        *(output_spec(task) for task in ("gender", "age", "attributes", "beauty_score", "identity")),
    ),
)


class Sums:
    """Answers that follow from the sum of a picture's values, which is exact: the same bits in a batch of any size."""

    spec = SPEC
    runtime, precision = "torch", "fp32"

    def __init__(self) -> None:
        self.pictures = 0

    def run(self, batch: NDArray[np.uint8]) -> Outputs:
        self.pictures += len(batch)
        sums = batch.astype(np.int64).sum(axis=(1, 2, 3)).astype(np.float64)
        found = {}
        for number, output in enumerate(SPEC.outputs, start=1):
            steps = np.arange(1, int(np.prod(output.shape)) + 1) * 0.37 * number
            values = np.sin(sums[:, None] * steps).reshape(len(batch), *output.shape)
            found[output.name] = (values * (0.02 if output.name == "landmarks5" else 1.0)).astype(np.float32)
        return found


def shards(folder: Path, *, px: int, margin: float, count: int = COUNT, size: int = 8) -> str:
    pack_shards(
        Plan(source=f"synthetic:{count}@test", root=folder, px=px, margin=margin, shard_size=size),
        folder / "shards",
        workers=1,
    )
    return f"webdataset:{folder / 'shards'}@test"


@pytest.fixture(scope="module", params=[(PX, 1.0), (24, 1.3)], ids=["crops as stored", "crops cut anew"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    px, margin = request.param
    return shards(tmp_path_factory.mktemp("faces"), px=px, margin=margin)


def in_memory(source: str, folder: Path) -> Pack:
    return pack(open_source(source, root=folder), px=PX, margin=1.0, cache=folder)


def figures(found: Evaluation) -> dict[str, object]:
    """All that an evaluation says, in a form that compares bit by bit."""
    arrays = {**found.outputs, **{f"label {name}": values for name, values in found.labels.items()}}
    arrays |= {f"group {name}": values for name, values in found.groups.items()}
    return {
        **found.as_json(),
        "keys": list(found.keys),
        "people": list(found.people),
        **{name: (values.dtype.str, values.shape, values.tobytes()) for name, values in arrays.items()},
    }


def test_figures_are_those_of_the_pack_to_the_last_bit(source: str, tmp_path: Path) -> None:
    streamed, kept = evaluation_crops(source, px=PX, root=tmp_path), in_memory(source, tmp_path)
    assert isinstance(streamed.images, StreamedCrops)
    expected = figures(evaluate(Sums(), kept))
    assert set(kept.labels) >= {"landmarks5", "gender", "age", "attributes", "beauty_score", "identity"}
    assert expected["tasks"]
    for batch in (1, 7, 64):
        assert figures(evaluate(Sums(), streamed, batch=batch)) == expected


def test_one_other_picture_or_label_gives_other_figures_twin(source: str, tmp_path: Path) -> None:
    streamed, kept = evaluation_crops(source, px=PX, root=tmp_path), in_memory(source, tmp_path)
    expected = figures(evaluate(Sums(), streamed))["tasks"]
    images = np.array(kept.images)
    images[17, 3, 3, 0] ^= 1
    assert figures(evaluate(Sums(), replace(kept, images=images)))["tasks"] != expected
    labels = {**kept.labels, "landmarks5": kept.labels["landmarks5"].copy()}
    labels["landmarks5"][17, 0, 0] += 1e-3
    assert figures(evaluate(Sums(), replace(kept, labels=labels)))["tasks"] != expected


def test_pictures_are_those_of_the_faces_that_were_packed(tmp_path: Path) -> None:
    streamed = evaluation_crops(shards(tmp_path, px=PX, margin=1.0), px=PX, root=tmp_path)
    faces = pack(open_source(f"synthetic:{COUNT}@test", root=tmp_path), px=PX, margin=1.0, cache=tmp_path)
    assert np.array_equal(streamed.images, faces.images)
    assert streamed.keys == faces.keys
    for name, values in faces.labels.items():
        # Landmarks go through float32 pixels of the crop, whose rounding is 6e-8 of their size.
        assert np.allclose(streamed.labels[name], values, rtol=0, atol=3e-7, equal_nan=True), name
    assert not np.array_equal(streamed.images[1:], faces.images[:-1])  # twin


@pytest.mark.parametrize("batch", [1, 5, 8, 64, 1000])
def test_every_sample_is_answered_once_and_in_order(source: str, tmp_path: Path, batch: int) -> None:
    streamed, kept = evaluation_crops(source, px=PX, root=tmp_path), in_memory(source, tmp_path)
    runner, told = Sums(), []
    found = evaluate(runner, streamed, batch=batch, progress=told.append)
    assert (runner.pictures, found.samples, told[-1]) == (COUNT, COUNT, COUNT)
    assert len(set(found.keys)) == COUNT
    batches = list(in_batches(streamed.images, batch))
    assert [len(each) for each in batches] == [min(batch, COUNT - start) for start in range(0, COUNT, batch)]
    assert np.array_equal(np.concatenate(batches), kept.images)


def test_a_shard_that_is_left_out_is_missed_twin(tmp_path: Path) -> None:
    source = shards(tmp_path, px=PX, margin=1.0)
    index = tmp_path / "shards" / "test.json"
    told = json.loads(index.read_text())
    told["shards"].pop(2)
    index.write_text(json.dumps(told))
    found = evaluate(Sums(), evaluation_crops(source, px=PX, root=tmp_path))
    assert found.samples == COUNT - 8
    kept = pack(open_source(f"synthetic:{COUNT}@test", root=tmp_path), px=PX, margin=1.0, cache=tmp_path)
    assert list(found.keys) == [key for place, key in enumerate(kept.keys) if place // 8 != 2]


def test_rows_are_chosen_as_of_an_array(source: str, tmp_path: Path) -> None:
    images, kept = evaluation_crops(source, px=PX, root=tmp_path).images, in_memory(source, tmp_path).images
    assert images.shape == kept.shape
    mask = np.arange(COUNT) % 7 == 3
    for rows in (0, -1, np.int64(9), slice(3, 30), slice(None, None, -9), [5, 59, 3, 5], np.array([-2]), mask):
        assert np.array_equal(images[rows], kept[rows])
    assert images[np.zeros(0, np.int64)].shape == (0, PX, PX, 3)
    for beyond in (COUNT, [0, -COUNT - 1]):
        with pytest.raises(IndexError):
            images[beyond]
    assert not np.array_equal(images[[5, 3]], kept[[3, 5]])  # twin


class Counted:
    """How many pictures are in memory at a time, of those that were handed out by batches."""

    def __init__(self, images: object) -> None:
        self._images, self._lock = images, threading.Lock()
        self.shape = images.shape  # type: ignore[attr-defined]
        self.now = self.most = 0

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: slice) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] = self._images[rows]  # type: ignore[index]
        with self._lock:
            self.now += len(found)
            self.most = max(self.most, self.now)
        weakref.finalize(found, self._gone, len(found))
        return found

    def _gone(self, count: int) -> None:
        with self._lock:
            self.now -= count


@pytest.mark.parametrize("count", [120, 480])
def test_a_few_batches_are_in_memory_however_many_samples_there_are(tmp_path: Path, count: int) -> None:
    source = shards(tmp_path, px=PX, margin=1.0, count=count, size=16)
    streamed = evaluation_crops(source, px=PX, root=tmp_path)
    counted, batch = Counted(streamed.images), 8
    assert evaluate(Sums(), replace(streamed, images=counted), batch=batch).samples == count
    # One that is scored, one handed over, and one in the making of each thread and one more.
    assert 0 < counted.most <= (DECODERS + 3) * batch < count
    held = list(in_batches(counted, batch))  # twin: whoever keeps them all is noticed
    assert counted.most == count == sum(map(len, held))
    del held
    gc.collect()
    assert counted.now == 0


def test_scoring_writes_no_pictures_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = shards(tmp_path, px=PX, margin=1.0)
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "cache"))
    found = evaluation_pack(source, SPEC, root=tmp_path)
    data = TrainingData(train=(), val=(source,), root=tmp_path, outputs={}, content_hash="")
    (judged,) = data.validation(PX)  # the faces that a training is watched on
    assert isinstance(judged.images, StreamedCrops)
    assert judged.content_hash == found.content_hash
    assert evaluate(Sums(), judged).tasks == evaluate(Sums(), found).tasks
    assert not (cache_folder() / "packs").exists()
    pack(open_source(source, root=tmp_path), px=PX, margin=1.0)  # twin
    assert (cache_folder() / "packs").exists()


def test_a_shard_that_changes_while_it_is_scored_is_noticed(tmp_path: Path) -> None:
    source = shards(tmp_path, px=PX, margin=1.0)
    streamed = evaluation_crops(source, px=PX, root=tmp_path)
    assert evaluate(Sums(), streamed).samples == COUNT  # twin
    last = sorted((tmp_path / "shards").glob("*.tar"))[-1]
    content = bytearray(last.read_bytes())
    content[600] ^= 1  # in the first picture
    last.write_bytes(content)
    with pytest.raises(DataError, match=f"the bytes of {last.name} have changed"):
        evaluate(Sums(), streamed)
    with pytest.raises(DataError, match=f"the bytes of {last.name} have changed"):
        evaluation_crops(source, px=PX, root=tmp_path)


def foreign(folder: Path, count: int, *, broken: tuple[int, ...] = (), outside: tuple[int, ...] = ()) -> str:
    """Shards of others, of four samples each."""
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, count, 4):
        with tarfile.open(folder / f"train-{first // 4}.tar", "w") as archive:
            for number in range(first, min(first + 4, count)):
                x = 900 if number in outside else 12
                picture = encode_picture(np.full((24, 24, 3), 10 * number, np.uint8), "png")
                told = {"gender": number % 2, "crop": [x, 12, 20]}
                members = {"png": picture[:-30] if number in broken else picture, "json": json.dumps(told).encode()}
                for suffix, content in members.items():
                    info = tarfile.TarInfo(f"{number:02d}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return f"webdataset:{folder}@train"


def test_pictures_of_others_that_cannot_be_read_are_left_out_and_counted_as_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "cache"))
    source = foreign(tmp_path / "odd", 10, broken=(3, 4), outside=(8,))
    tried = []
    trial = cropping._tried
    monkeypatch.setattr(cropping, "_tried", lambda *given: (tried.append(given), trial(*given))[1])
    expected = in_memory(source, tmp_path)
    for _ in range(2):
        streamed = evaluation_crops(source, px=PX, root=tmp_path)
        assert streamed.skipped == expected.skipped
        assert len(streamed.skipped[UNDECODABLE]) == 3
        assert figures(evaluate(Sums(), streamed)) == figures(evaluate(Sums(), expected))
    assert len(tried) == 3  # each shard once
    assert not evaluation_crops(foreign(tmp_path / "whole", 10), px=PX, root=tmp_path).skipped  # twin
    with pytest.raises(DataError, match="a picture cannot be read: train-0/03"):
        evaluation_crops(source, px=PX, root=tmp_path, strict=True)
    with pytest.raises(DataError, match="none of 4 pictures can be read"):
        evaluation_crops(foreign(tmp_path / "none", 4, broken=(0, 1, 2, 3)), px=PX, root=tmp_path)


@given(texts=st.lists(st.text(st.characters(codec=None), max_size=4), max_size=12))
def test_texts_are_a_sequence_of_what_they_were_given(texts: list[str]) -> None:
    held = Texts(texts)
    assert list(held) == texts
    assert held == tuple(texts)
    assert held == Texts(texts)
    assert held[-3:] == tuple(texts[-3:])
    assert [held[place] for place in range(-len(texts), 0)] == texts
    assert held != [*texts, "x"]
    assert held != Texts([*texts, ""])  # twin: an empty one counts
    with pytest.raises(IndexError):
        held[len(texts)]
