"""A teacher's answers to streamed samples: written once by several processes, as fp16, and read shard by shard.

A folder of them is one of stored answers (`distill.foreign`) whose manifest names shards in the place of samples:

    manifest.json         as there, and "shards": {sha256 of a shard: file of its answers}
    SHARD.safetensors     output name to (N, *shape) float16, a row for each sample of that shard in its order

A file is whole or absent, and says what it was made from; a process that comes again makes those that are missing. The
manifest is written by whoever finds the last one there.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.foreign import (
    SCHEMA,
    Answers,
    in_our_words,
    load_answers,
    read_safetensors,
    taught_tasks,
    taught_values,
    write_manifest,
)
from edgeface.data.loader import Batches
from edgeface.data.pack import Pack
from edgeface.data.shards import Shard
from edgeface.data.stream import Stream, StreamBatches, once
from edgeface.errors import ConfigError, DataError, ModelError, OutputError
from edgeface.evaluate import Runner, raw_output
from edgeface.files import sha256_json, write_bytes
from edgeface.specs import ModelSpec, Recipe, TrainSpec

_KEPT = 64  # shards whose answers stay in memory; a window of the stream has as many

AnyBatches = Batches | StreamBatches


def is_streamed(parts: Sequence[Pack | Stream]) -> bool:
    """Whether any training source is read from shards."""
    return any(isinstance(part, Stream) for part in parts)


def streamed_batches(
    recipe: Recipe,
    parts: Sequence[Pack | Stream],
    *,
    spec: TrainSpec,
    input_px: int,
    seed: int,
    answers: Answers | None,
    model: ModelSpec | None,
    rank: int,
    world: int,
) -> StreamBatches:
    """Training batches where at least one source is streamed; arguments as distill.stages.batches_for.

    Raises:
        ConfigError: The recipe balances classes or databases, or the answers are kept by name.
    """
    for value, where in ((spec.balance, "train.balance"), (recipe.data.balance, "data.balance")):
        if value:
            raise ConfigError(
                f"{value!r} with a streamed source",
                expected='"": a stream brings every sample once an epoch',
                where=where,
                do="Leave it out; or take the source that the shards were packed from, which is packed in the cache",
            )
    return StreamBatches(
        parts,
        tasks=tuple(recipe.tasks),
        augment=recipe.augment,
        input_px=input_px,
        batch=spec.batch,
        seed=seed,
        answers=None if answers is None or model is None else ShardAnswers(answers, parts, model, recipe.teacher.map),
        rank=rank,
        world=world,
    )


class ShardAnswers:
    """Stored answers by shard, for `StreamBatches`.

    Args:
        answers: A folder's.
        parts: The training sources.
        student: Outputs of the network to train.
        names: The recipe's teacher.map.

    Raises:
        ConfigError: They are kept by name, or teach none of the student's tasks.
        DataError: They answer none of the streamed shards.
    """

    def __init__(
        self, answers: Answers, parts: Sequence[Pack | Stream], student: ModelSpec, names: Mapping[str, str]
    ) -> None:
        where = str(answers.folder)
        if not answers.shards:
            raise ConfigError(
                f"answers by name in {where}",
                expected="answers by shard, while a training source is streamed",
                where="teacher.frozen",
                do="Write them for the shards: edgeface eval MODEL --data webdataset:PATH --answers FOLDER",
            )
        self._answers, self._where = answers, where
        self._model = in_our_words(answers.model, names, where=where)
        self._theirs = {ours: theirs for theirs, ours in names.items()}
        self._tasks = taught_tasks(self._model, student, where=where)
        streamed = [shard for part in parts if isinstance(part, Stream) for shard in part.shards.shards]
        if not any(shard.sha256 in answers.shards for shard in streamed):
            raise DataError(
                f"none of the {len(streamed)} training shards is answered",
                expected=f"answers to {streamed[0].path.name}, …, as it is now",
                where=where,
                do="Write them: edgeface eval MODEL --data webdataset:PATH --answers FOLDER",
            )
        self._kept: OrderedDict[str, dict[str, NDArray[np.float16]]] = OrderedDict()
        self._lock = threading.Lock()

    def none(self, count: int) -> dict[str, NDArray[np.float32]]:
        """No answers for `count` samples."""
        return {task: np.full((count, *self._model.output(task).shape), np.nan, np.float32) for task in self._tasks}

    def rows(self, shard: Shard, rows: NDArray[np.int64], *, margin: float) -> dict[str, NDArray[np.float32]]:
        """Task to the answers for some samples of a shard; landmarks as points in sides of the packed crop."""
        if shard.sha256 not in self._answers.shards:
            return self.none(len(rows))
        held = self._held(shard)
        margins = np.full(len(rows), margin)
        found = {}
        for task in self._tasks:
            values = held[self._theirs.get(task, task)][rows].astype(np.float32)
            found[task] = taught_values(self._model.output(task), values, margins)
        return found

    def _held(self, shard: Shard) -> dict[str, NDArray[np.float16]]:
        with self._lock:
            held = self._kept.pop(shard.sha256, None)
            if held is None:
                file = self._answers.folder / self._answers.shards[shard.sha256]
                held = _read(file, self._answers.model, samples=shard.samples)
            self._kept[shard.sha256] = held
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return held


def _read(file: Path, model: ModelSpec, *, samples: int) -> dict[str, NDArray[np.float16]]:
    try:
        arrays = {output.name: read_safetensors(file)[output.name] for output in model.outputs}
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"it cannot be read ({error})", expected="answers to a shard", where=str(file), do="Write them again"
        ) from error
    for output in model.outputs:
        if arrays[output.name].shape != (samples, *output.shape):
            raise ModelError(
                f"answers of shape {arrays[output.name].shape} to {output.name!r}",
                expected=f"{(samples, *output.shape)}",
                where=str(file),
                do="Write them again for these shards",
            )
    return arrays


def store_answers(
    runner: Runner,
    stream: Stream,
    folder: Path,
    *,
    made_from: str,
    licences: Sequence[str],
    research_only: bool,
    rank: int = 0,
    world: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Answers | None:
    """Ask a model about every streamed sample once, and keep what it says as fp16.

    Args:
        runner: The model.
        stream: Crops of margin 1 at its input size.
        folder: Where the answers go; what is there already, of the same model and shards, stays.
        made_from: Digest of the model.
        licences: Terms of what the model was made from.
        research_only: Whether what learns from it may not be shipped.
        rank: Which process this is, 0 to `world` - 1.
        world: Processes that share the work; each takes every `world`-th shard.
        progress: Told how many samples of this process's share are answered, and of how many.

    Returns:
        All answers, or None while another process still owes some.

    Raises:
        DataError: A sample cannot be read.
        ModelError: An output is missing, has another shape, is not finite, or too large for fp16.
        OutputError: The folder holds something else, or cannot be written.
    """
    from safetensors.numpy import save

    shards = stream.shards.shards
    names = _names(shards)
    manifest = {
        "schema": SCHEMA,
        "source": stream.source,
        "runtime": runner.runtime,
        "precision": runner.precision,
        "shards": {shard.sha256: names[shard] for shard in shards},
        "key": sha256_json([made_from, [shard.sha256 for shard in shards]]),
    }
    if folder.is_dir() and (odd := [path for path in folder.iterdir() if path.suffix != ".safetensors"]):
        done = [path for path in odd if not path.name.startswith(".")]
        if done and load_answers(folder).key != manifest["key"]:
            raise OutputError(
                "answers of another model, or to other shards",
                expected="an absent folder, or one of the same answers",
                where=str(folder),
                do="Name another folder",
            )
    share = shards[rank::world]
    total, asked = sum(shard.samples for shard in share), 0
    keys = {shard: sha256_json([made_from, shard.sha256]) for shard in shards}
    if progress is not None:
        asked = sum(shard.samples for shard in share if _is_there(folder / names[shard], keys[shard]))
        progress(asked, total)
    for shard, pieces in once(
        stream, rank=rank, world=world, wanted=lambda shard: not _is_there(folder / names[shard], keys[shard])
    ):
        found = _asked(runner, pieces, where=str(shard.path))
        write_bytes(folder / names[shard], save(found, metadata={"key": keys[shard]}))
        asked += shard.samples
        if progress is not None:
            progress(asked, total)
    if not all(_is_there(folder / names[shard], keys[shard]) for shard in shards):
        return None
    write_manifest(folder, model=runner.spec, licences=licences, research_only=research_only, extra=manifest)
    return load_answers(folder)


def _names(shards: Sequence[Shard]) -> dict[Shard, str]:
    return {shard: f"{shard.name}.safetensors" for shard in shards}


def _asked(runner: Runner, pieces: Iterator[NDArray[np.uint8]], *, where: str) -> dict[str, NDArray[np.float16]]:
    parts: dict[str, list[NDArray[np.float16]]] = {output.name: [] for output in runner.spec.outputs}
    for images in pieces:
        answers = runner.run(images)
        for output in runner.spec.outputs:
            raw = raw_output(output, answers)
            with np.errstate(over="ignore"):
                short = raw.astype(np.float16)
            if not np.isfinite(short).all():
                raise ModelError(
                    f"an answer of {float(np.abs(raw).max()):.4g} to {output.name!r}",
                    expected=f"at most {float(np.finfo(np.float16).max):g}, the largest number of fp16",
                    where=where,
                    do="Check the model; answers of this size are no logits",
                )
            parts[output.name].append(short)
    # safetensors writes memory as it lies, and what a runner transposed lies in another order.
    return {
        output.name: np.ascontiguousarray(
            np.concatenate([np.zeros((0, *output.shape), np.float16), *parts[output.name]])
        )
        for output in runner.spec.outputs
    }


def _is_there(file: Path, key: str) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            return bool((opened.metadata() or {}).get("key") == key)
    except (OSError, SafetensorError):
        return False
