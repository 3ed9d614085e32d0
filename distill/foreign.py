"""Teachers of others: what a model answered once for each training face, kept by sample, and whose words it speaks.

A folder of stored answers:

    manifest.json         {"schema": 1, "kind": "answers", "model": {name, input_px, outputs}, "files": {name: sha256},
                          "provenance": {"licences": […], "research_only": bool}}; other keys are ignored
    keys.json             N names of faces, `CORPUS/KEY` as `sample_keys` makes them
    answers.safetensors   output name to (N, *shape) float32, as they leave the model; NaN where it gave none
                          (or answers.npz)

Answers to streamed samples are kept by shard instead: see `distill.streaming`.

Landmarks are offsets from the output's mean shape, in sides of edgeface's nominal crop of that face. A forest's folder
is one of these too. A folder of such folders, one a corpus, counts as one.

The answers are those for the plain crop. Training varies the crop: points move with it, left and right change places
when it is mirrored, and everything else stays, so the student is asked to answer for the altered picture what the
teacher said of the plain one.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeface import limits
from edgeface.arrays import read_arrays
from edgeface.checkpoint import read_model_spec
from edgeface.config import to_plain
from edgeface.errors import ConfigError, DataError, ModelError, did_you_mean
from edgeface.files import is_plain_name, read_json, sha256_file, sha256_json, write_folder, write_json
from edgeface.models.heads import heatmap_points
from edgeface.specs import ModelSpec, OutputSpec
from edgeface.tasks import TASKS, Kind

if TYPE_CHECKING:
    from edgeface.data.pack import Pack

SCHEMA = 1
KINDS = ("answers", "forest")
MANIFEST = "manifest.json"
KEYS = "keys.json"
ANSWERS = "answers.safetensors"
ARCHIVE = "answers.npz"


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a teacher answered, by sample.

    Attributes:
        folder: Where it is kept.
        model: What its outputs mean.
        keys: N names of faces.
        outputs: Output name to (N, *shape); NaN where there is no answer.
        sha256: Digest of the names, the answers and what they mean.
        licences: Terms of what the teacher was made from.
        research_only: True when what learned from it may not be shipped.
        key: What the folder was made from, as its maker named it; "" for folders of others.
        shards: sha256 of a shard to the file of its answers, in the place of `keys` and `outputs`; empty where answers
            are kept by name.
    """

    folder: Path
    model: ModelSpec
    keys: tuple[str, ...]
    outputs: Mapping[str, NDArray[np.float32]]
    sha256: str
    licences: tuple[str, ...]
    research_only: bool
    key: str = ""
    shards: Mapping[str, str] = field(default_factory=dict)


def sample_keys(pack: Pack) -> list[str]:
    """N names that mean the same face wherever its corpus lies, whatever part of it is read."""
    # The drawn faces of each split are numbered from 0; elsewhere a key is a path inside the corpus.
    lead = f"{pack.name}@{pack.split}" if pack.name == "synthetic" else pack.name
    return [f"{lead}/{key}" for key in pack.keys]


def save_answers(
    folder: Path,
    *,
    model: ModelSpec,
    keys: Sequence[str],
    outputs: Mapping[str, NDArray[np.float32]],
    licences: Sequence[str],
    research_only: bool,
    kind: str = "answers",
    extra: Mapping[str, object] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Answers:
    """Write a folder of answers aside and rename it into place.

    Args:
        folder: Its place.
        model: What the outputs mean.
        keys: N names from `sample_keys`.
        outputs: Name of each output of `model` to (N, *shape).
        licences: Terms of what the teacher was made from.
        research_only: Whether what learns from it may not be shipped.
        kind: One of KINDS.
        extra: More manifest entries.
        files: More files by name.

    Raises:
        DataError: A face stands twice.
        ModelError: An output is missing or has another shape.
    """
    from safetensors.numpy import save_file

    if len(set(keys)) != len(keys):
        twice = next(key for place, key in enumerate(keys) if key in keys[:place])
        raise DataError(f"{twice!r} stands twice", expected="each face once", where=str(folder), do="Name each once")
    for output in model.outputs:
        shape = outputs[output.name].shape if output.name in outputs else ()
        if shape != (len(keys), *output.shape):
            raise ModelError(
                f"answers of shape {shape} to {output.name!r}",
                expected=f"{(len(keys), *output.shape)}",
                where=str(folder),
            )
    with write_folder(folder) as aside:
        (aside / KEYS).write_text(json.dumps(list(keys), ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
        kept = {output.name: np.ascontiguousarray(outputs[output.name], np.float32) for output in model.outputs}
        save_file(kept, aside / ANSWERS)
        for name, content in (files or {}).items():
            (aside / name).write_bytes(content)
        write_manifest(aside, model=model, licences=licences, research_only=research_only, kind=kind, extra=extra)
    return load_answers(folder)


def write_manifest(
    folder: Path,
    *,
    model: ModelSpec,
    licences: Sequence[str],
    research_only: bool,
    kind: str = "answers",
    extra: Mapping[str, object] | None = None,
) -> None:
    """Write the manifest of a folder that holds all else, with the sha256 of each file; arguments as `save_answers`."""
    files = [path for path in sorted(folder.iterdir()) if path.name != MANIFEST and not path.name.startswith(".")]
    write_json(
        folder / MANIFEST,
        {
            "schema": SCHEMA,
            "kind": kind,
            "model": to_plain(model),
            "provenance": {"licences": list(licences), "research_only": research_only},
            **(extra or {}),
            "files": {path.name: sha256_file(path) for path in files},
        },
    )


def holds_answers(folder: Path) -> bool:
    """Whether a path is a folder of answers, or of such folders."""
    return _kind(folder) in KINDS or bool(_parts(folder))


def find_answers(run: Path) -> Answers | None:
    """The answers that a run keeps, of a frozen teacher or of its own teacher's forests; None where it keeps none."""
    kept = [run / name for name in ("answers", "forest") if holds_answers(run / name)]
    return load_answers(kept[0]) if kept else None


def _kind(folder: Path) -> str:
    try:
        manifest = read_json(folder / MANIFEST)
    except (OSError, ValueError):
        return ""
    return str(manifest.get("kind", "")) if isinstance(manifest, dict) else ""


def _parts(folder: Path) -> list[Path]:
    """The folders of answers inside a folder that holds nothing else, as a run does."""
    if not folder.is_dir():
        return []
    inside = sorted(folder.iterdir())
    return inside if all(_kind(path) in KINDS for path in inside) else []


def load_answers(folder: Path) -> Answers:
    """Read and check a folder of answers.

    Raises:
        ModelError: It is missing, incomplete or altered.
    """
    parts = _parts(folder)
    if parts:
        return _together(folder, [load_answers(part) for part in parts])
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
    except (OSError, ValueError) as error:
        raise _broken(path, f"no manifest that can be read ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA or manifest.get("kind") not in KINDS:
        raise _broken(path, "not a manifest of stored answers, schema 1")
    files, shards = manifest.get("files"), manifest.get("shards", {})
    held = [name for name in (ANSWERS, ARCHIVE) if isinstance(files, dict) and name in files]
    if not isinstance(files, dict) or not isinstance(shards, dict):
        raise _broken(path, "'files' or 'shards' is no object")
    by_shard = len(shards) > 0
    if not all(isinstance(name, str) and name in files for name in shards.values()):
        raise _broken(path, "'files' does not list the answers to each of its 'shards'")
    if not (by_shard or (KEYS in files and len(held) == 1)):
        raise _broken(path, f"'files' does not list {KEYS!r} and one of {ANSWERS!r}, {ARCHIVE!r}")
    for name, digest in files.items():
        if not is_plain_name(name) or not (folder / name).is_file():
            raise _broken(folder, f"{name!r} is not there")
        if sha256_file(folder / name) != digest:
            raise _broken(folder / name, "its content does not match the manifest's sha256")
    try:
        model = read_model_spec(manifest["model"], where="model")
        keys = () if by_shard else tuple(map(str, read_json(folder / KEYS)))
        arrays = {} if by_shard else _arrays(folder / held[0])
        outputs = {} if by_shard else {o.name: np.asarray(arrays[o.name], np.float32) for o in model.outputs}
        digested = [shards, files] if by_shard else [files[KEYS], files[held[0]]]
    except (ConfigError, KeyError, TypeError, ValueError, OSError) as error:
        raise _broken(folder, f"it cannot be read ({error})") from error
    for output in () if by_shard else model.outputs:
        if outputs[output.name].shape != (len(keys), *output.shape):
            raise _broken(
                folder,
                f"answers of shape {outputs[output.name].shape} to {output.name!r} for {len(keys)} faces of shape "
                f"{output.shape}",
            )
    made = manifest.get("provenance", {})
    if not isinstance(made, dict) or not isinstance(made.get("licences", []), list):
        raise _broken(path, "'provenance' is not what edgeface writes")
    return Answers(
        folder=folder,
        model=model,
        keys=keys,
        outputs=outputs,
        sha256=sha256_json([*digested, to_plain(model)]),
        licences=tuple(made.get("licences", ())),
        research_only=bool(made.get("research_only", True)),
        key=str(manifest.get("key", "")),
        shards=dict(shards) if by_shard else {},
    )


def _broken(where: Path, found: str) -> ModelError:
    return ModelError(
        found, expected="a folder of stored answers", where=str(where), do="Write it again: edgeface eval … --answers"
    )


def unpacked_bytes(path: Path) -> int:
    """Size of a file once it is read: of a zip archive, what its parts say they hold.

    Raises:
        ValueError: It is named as an archive and is none.
    """
    if path.suffix not in (".npz", ".skops"):
        return path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(part.file_size for part in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(str(error)) from error


def _arrays(path: Path) -> Mapping[str, NDArray[Any]]:
    if path.name == ARCHIVE:
        return read_arrays(path, limit=limits.WEIGHTS_BYTES)
    return read_safetensors(path)


def read_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a file, within limits.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged, or larger than `limits` allows.
    """
    if (size := path.stat().st_size) > limits.WEIGHTS_BYTES:
        raise ValueError(f"{size:,} bytes, where at most {limits.WEIGHTS_BYTES:,} are read")
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _together(folder: Path, parts: Sequence[Answers]) -> Answers:
    """Several corpora's answers of one model as one."""
    first = parts[0]
    for part in parts[1:]:
        if part.model.outputs != first.model.outputs:
            raise ModelError(
                f"{part.folder.name!r} and {first.folder.name!r} answer different things",
                expected="the same outputs in each",
                where=str(folder),
                do="Take the answers of one model",
            )
    keys = [key for part in parts for key in part.keys]
    if len(set(keys)) != len(keys):
        raise DataError("a face stands in two of its folders", expected="each face once", where=str(folder))
    return replace(
        first,
        folder=folder,
        keys=tuple(keys),
        outputs={name: np.concatenate([part.outputs[name] for part in parts]) for name in first.outputs},
        sha256=sha256_json([part.sha256 for part in parts]),
        licences=tuple(dict.fromkeys(term for part in parts for term in part.licences)),
        research_only=any(part.research_only for part in parts),
        key="",
    )


def in_our_words(model: ModelSpec, names: Mapping[str, str], *, where: str) -> ModelSpec:
    """A teacher's outputs under the names of the tasks they teach.

    Args:
        model: Its own.
        names: Output name to task; outputs that are not in it keep their names. `teacher_names` is the way back.
        where: The teacher, for errors.

    Raises:
        ConfigError: It has no such output.
    """
    own = {output.name: output for output in model.outputs}
    for theirs in names:
        if theirs not in own:
            raise ConfigError(
                f"{where} has no output {theirs!r}",
                expected=f"one of {', '.join(map(repr, own))}",
                where=f"teacher.map.{theirs}",
                do=did_you_mean(theirs, own) or "Correct the name",
            )
    outputs = []
    for name, output in own.items():
        ours = names.get(name, name)
        if ours in TASKS and (name in names or ours not in names.values()):
            outputs.append(replace(output, name=ours, task=ours))
    return replace(model, outputs=tuple(outputs))


def taught_tasks(model: ModelSpec, student: ModelSpec, *, where: str) -> list[str]:
    """The student's outputs that a teacher in our words can teach.

    Raises:
        ConfigError: There is none, or one means its classes or its shape differently.
    """
    theirs = {output.name: output for output in model.outputs}
    shared = [output for output in student.outputs if output.name in theirs]
    if not shared:
        raise ConfigError(
            f"it answers {', '.join(map(repr, theirs)) or 'nothing that edgeface knows'}",
            expected=f"one of the recipe's tasks: {', '.join(repr(output.name) for output in student.outputs)}",
            where=where,
            do="Say in teacher.map which of its outputs teaches which task",
        )
    for output in shared:
        other = theirs[output.name]
        if TASKS[output.task].kind is Kind.LANDMARKS and len(other.mean_shape) != len(output.mean_shape):
            raise ConfigError(
                f"{output.name!r} with a mean shape of {len(other.mean_shape)} points",
                expected=f"{len(output.mean_shape)}: its answers are offsets from them",
                where=where,
                do="Write them into the manifest, or leave the task out",
            )
        if _meaning(other) != _meaning(output):
            raise ConfigError(
                f"{output.name!r} answers {_meaning(other)}",
                expected=str(_meaning(output)),
                where=where,
                do="Take a teacher that means the same, or map its output to another task",
            )
    return [output.name for output in shared]


def _meaning(output: OutputSpec) -> tuple[object, ...]:
    if TASKS[output.task].kind is Kind.LANDMARKS:  # as heatmaps or as offsets, it means places
        return (len(output.mean_shape), 2)
    # A teacher in whose description the classes are not named is taken at its word.
    return (output.shape, *(output.classes or TASKS[output.task].classes))


def rows_for(
    answers: Answers, packs: Sequence[Pack], student: ModelSpec, *, names: Mapping[str, str]
) -> dict[str, Tensor]:
    """Stored answers in the order of training samples.

    Args:
        answers: The teacher's.
        packs: The training packs, in the order of `Batches`.
        student: Outputs of the network to train.
        names: As for `in_our_words`.

    Returns:
        Task name to (N, *shape) float32, NaN where nothing is stored; landmarks as points in sides of the packed crop.

    Raises:
        ConfigError: It teaches none of the student's tasks.
        DataError: None of the samples is among the answers, or two samples share a name.
    """
    where = str(answers.folder)
    if answers.shards:
        raise ConfigError(
            f"answers by shard in {where}",
            expected="answers by name, while no training source is streamed",
            where="teacher.frozen",
            do="Train on the shards, webdataset:PATH; or write the answers again for the sources of data.train",
        )
    model = in_our_words(answers.model, names, where=where)
    theirs = {ours: name for name, ours in names.items()}
    place = {key: row for row, key in enumerate(answers.keys)}
    keys = [key for part in packs for key in sample_keys(part)]
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DataError(
            f"two training faces are called {twice!r}",
            expected="names that tell them apart, since stored answers are looked up by name",
            where="data.train",
            do="Leave one of the sources out",
        )
    rows = np.array([place.get(key, -1) for key in keys])
    if not (rows >= 0).any():
        raise DataError(
            f"none of the {len(keys)} training faces; it has {answers.keys[0]!r}, …",
            expected=f"{keys[0]!r}, …",
            where=where,
            do="Write the answers for the recipe's data.train: edgeface eval MODEL --data SOURCE --answers FOLDER",
        )
    margins = np.repeat([part.margin for part in packs], [len(part) for part in packs])
    found = {}
    for task in taught_tasks(model, student, where=where):
        output, values = model.output(task), answers.outputs[theirs.get(task, task)]
        chosen = np.where((rows >= 0).reshape(-1, *(1,) * (values.ndim - 1)), values[rows], np.nan)
        found[task] = torch.from_numpy(taught_values(output, chosen, margins))
    return found


def taught_values(output: OutputSpec, raw: NDArray[Any], margins: NDArray[np.float64]) -> NDArray[np.float32]:
    """Raw answers as training takes them: landmarks as points in sides of the packed crop, all else as it is.

    Args:
        output: What they answer.
        raw: (N, *shape).
        margins: (N,) side of each packed crop over the side of the nominal crop.
    """
    if TASKS[output.task].kind is Kind.LANDMARKS:
        points = heatmap_points(raw) if output.heatmap else raw + np.asarray(output.mean_shape, np.float32)
        raw = (points - 0.5) / margins[:, None, None] + 0.5
    return np.asarray(raw, np.float32)
