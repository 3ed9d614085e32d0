"""The forest head: random forests in the place of softmax, on what a trained teacher's trunk sees.

Once the teacher is trained, its shared features of every plain training crop are taken, and a forest is grown on them
for each task that the recipe names. A forest says of a face it grew on what its label was; as a teacher it would only
repeat the labels. So what is stored for the students is, for such a face, the answer of the trees that did not have it
in their sample (out of bag); for every other face, that of all trees.

A folder `forest/` beside `teacher/` holds the forests, and the answers as distill.foreign stores them.

Source:
    2M BeautyNet (Gan, Xiang, Zhai et al., IEEE Access 8:20245-20256, 2020): after training, a random forest replaces
    softmax. Its settings, and on which features it grows, are in no source we have; ours are 300 trees, at least five
    faces a leaf, on the features that the heads read. Breiman, Random Forests, Machine Learning 45, 2001 (out of bag).
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distill.foreign import Answers, holds_answers, load_answers, sample_keys, save_answers, unpacked_bytes
from distill.stages import TrainingData, load_network, use_threads
from edgeface import limits
from edgeface.checkpoint import Checkpoint, load_checkpoint
from edgeface.config import to_plain
from edgeface.data.corpus import is_labelled, unlabelled
from edgeface.data.pack import Pack, pack
from edgeface.data.sources import open_source
from edgeface.errors import ConfigError, MissingToolError, ModelError
from edgeface.files import read_json, sha256_json
from edgeface.models.network import MultiTaskNetwork
from edgeface.models.taps import Taps
from edgeface.specs import FEATURES, ForestSpec, ModelSpec, OutputSpec, Recipe
from edgeface.tasks import TASKS, Kind

Forest = Any  # RandomForestClassifier or RandomForestRegressor of scikit-learn, which brings no types
_FORMAT = 1  # raise it when the same teacher and faces begin to give other forests
_BATCH = 256
# Everything a forest's file may hold beside what skops itself vouches for. It keeps a tree's nodes as they were, so
# `_check_nodes` has to look at where they point.
TRUSTED = ("sklearn.tree._tree.Tree",)


def forest_key(recipe: Recipe, data: TrainingData, teacher: Checkpoint) -> str:
    """Digest of everything that a recipe's forests and their answers depend on."""
    return sha256_json(
        {
            "stage": "forest",
            "format": _FORMAT,
            "seed": recipe.seed,
            "threads": recipe.threads,
            "teacher": teacher.sha256,
            "forest": to_plain(replace(recipe.teacher.forest, tasks=())),
            "tasks": list(recipe.teacher.forest.tasks),
            "data": data.content_hash,
        }
    )


def grow_forests(
    recipe: Recipe,
    data: TrainingData,
    folder: Path,
    *,
    teacher: Checkpoint,
    progress: Callable[[str, int, int], None] | None = None,
) -> Answers:
    """Grow the recipe's forests on a teacher's features of the training faces, and store their answers.

    Args:
        recipe: A resolved recipe.
        data: From `training_data`.
        folder: Where forests and answers go; one that is there and whole, from the same teacher and faces, is kept.
        teacher: A float checkpoint.
        progress: Called with (source, crops done, crops in all) while plain crops are cut.

    Raises:
        ConfigError: The teacher does not answer a task, or fewer than two faces have a label of it.
        MissingToolError: scikit-learn or skops is not installed.
    """
    key = forest_key(recipe, data, teacher)
    if holds_answers(folder):
        kept = load_answers(folder)
        if kept.key == key:
            return kept
    _require_tools()
    import sklearn  # type: ignore[import-untyped]

    use_threads(recipe)
    spec = recipe.teacher.forest
    outputs = {output.name: output for output in teacher.model.outputs}
    for task in spec.tasks:
        if task not in outputs:
            raise ConfigError(
                f"the teacher does not answer {task!r}",
                expected=f"tasks among {', '.join(map(repr, outputs))}",
                where="teacher.forest",
                do="Take it out, or train a teacher with it",
            )
    packs = [_plain_crops(source, data, teacher.model.input_px, progress=progress) for source in recipe.data.train]
    features = np.concatenate([_features(teacher, part) for part in packs])
    answers, files = {}, {}
    for task in spec.tasks:
        labels = np.concatenate([_labels(task, part) for part in packs])
        known = is_labelled(TASKS[task], labels)
        if known.sum() < 2:
            raise ConfigError(
                f"{known.sum()} training faces have a label of {task!r}",
                expected="two or more",
                where="teacher.forest",
                do="Take it out, or add a source that labels it",
            )
        forest = grow(features[known], labels[known], kind=TASKS[task].kind, spec=spec, recipe=recipe)
        answers[task] = np.empty((len(labels), *outputs[task].shape), np.float32)
        answers[task][known] = out_of_bag(forest, outputs[task])
        if not known.all():
            answers[task][~known] = raw_answers(forest, features[~known], outputs[task])
        files[f"{task}.skops"] = _dumped(forest)
    made = teacher.manifest["provenance"]
    return save_answers(
        folder,
        model=replace(teacher.model, outputs=tuple(outputs[task] for task in spec.tasks)),
        keys=[name for part in packs for name in sample_keys(part)],
        outputs=answers,
        licences=list(dict.fromkeys([*made["licences"], *data.licences])),
        research_only=bool(made["research_only"]) or data.research_only,
        kind="forest",
        extra={
            "key": key,
            "made_from": {"teacher": teacher.sha256},
            "teacher": os.path.relpath(teacher.folder.resolve(), folder.parent.resolve() / folder.name),
            "forest": to_plain(spec),
            "faces": len(features),
            "features": features.shape[1],
            "versions": {"scikit-learn": sklearn.__version__},
        },
        files=files,
    )


def _require_tools() -> None:
    missing = [name for name in ("sklearn", "skops") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingToolError(
            f"no {' and no '.join(missing)}",
            expected="scikit-learn and skops, which grow and keep forests",
            where="teacher.forest",
            do="pip install 'edgeface[forest]'",
        )


def _plain_crops(source: str, data: TrainingData, px: int, *, progress: Callable[[str, int, int], None] | None) -> Pack:
    told = None if progress is None else (lambda done, total: progress(source, done, total))
    return pack(open_source(source, root=data.root), px=px, margin=1.0, progress=told)


def _labels(task: str, part: Pack) -> NDArray[Any]:
    return part.labels[task] if task in part.labels else unlabelled(TASKS[task], len(part))


@torch.no_grad()
def _features(teacher: Checkpoint, part: Pack) -> NDArray[np.float32]:
    """(N, D) shared features of plain crops."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = load_network(teacher).eval()
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    taps = Taps(network, [FEATURES])
    found = []
    for start in range(0, len(part), _BATCH):
        images = torch.tensor(part.images[start : start + _BATCH]).permute(0, 3, 1, 2)  # a copy: packs are read-only
        network(images.to(device).float().contiguous(memory_format=torch.channels_last))
        found.append(taps.take()[0].flatten(1).cpu().numpy())
    return np.concatenate(found)


def grow(
    features: NDArray[np.float32], labels: NDArray[Any], *, kind: Kind, spec: ForestSpec, recipe: Recipe
) -> Forest:
    """A forest for one task.

    Args:
        features: (N, D).
        labels: (N,) class indices, or scores in [0, 1].
        kind: CLASSES or SCORE.
        spec: Its dials.
        recipe: Seed and threads; threads change nothing but the time.
    """
    from sklearn.ensemble import (  # type: ignore[import-untyped]
        RandomForestClassifier,
        RandomForestRegressor,
    )

    made = RandomForestClassifier if kind is Kind.CLASSES else RandomForestRegressor
    forest = made(
        n_estimators=spec.trees,
        min_samples_leaf=spec.leaf,
        # Both kinds look at the root of the number of features: a regressor's own default looks at all of them.
        max_features="sqrt",
        oob_score=True,
        random_state=recipe.seed,
        n_jobs=max(1, recipe.threads),
    )
    forest.fit(features, labels)
    forest.n_jobs = 1  # threads would add the trees' answers in an order of their own
    return forest


def out_of_bag(forest: Forest, output: OutputSpec) -> NDArray[np.float32]:
    """(N, *shape) raw answers for the faces it grew on, each from the trees that did not have it in their sample."""
    if TASKS[output.task].kind is Kind.SCORE:
        scores: NDArray[np.float32] = forest.oob_prediction_.astype(np.float32)[:, None]
        return scores
    return _logits(forest, forest.oob_decision_function_, output)


def raw_answers(forest: Forest, features: NDArray[np.float32], output: OutputSpec) -> NDArray[np.float32]:
    """(N, *shape) raw answers: log-probabilities as logits, or scores."""
    if TASKS[output.task].kind is Kind.SCORE:
        scores: NDArray[np.float32] = forest.predict(features).astype(np.float32)[:, None]
        return scores
    return _logits(forest, forest.predict_proba(features), output)


def _logits(forest: Forest, probability: NDArray[np.float64], output: OutputSpec) -> NDArray[np.float32]:
    every = np.zeros((len(probability), *output.shape))
    every[:, forest.classes_] = probability  # a class without a training face has no column of its own
    floor = 0.5 / len(forest.estimators_)  # half of one tree's vote stands for "never", so that the logarithm ends
    return np.asarray(np.log(np.clip(every, floor, None)), np.float32)


def _dumped(forest: Forest) -> bytes:
    """A forest's file, the same bytes for the same forest.

    skops names a file's parts after their place in memory and gives them the time of day.
    """
    import skops.io  # type: ignore[import-untyped]

    with zipfile.ZipFile(io.BytesIO(skops.io.dumps(forest))) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    schema = parts.pop("schema.json").decode()
    numbers: dict[str, int] = {}

    def renumber(found: re.Match[str]) -> str:
        return f"{found[1]}{numbers.setdefault(found[2], len(numbers))}{found[3]}"

    schema = re.sub(r'("__id__": |"file": ")(\d+)(\.npy"|\b)', renumber, schema)
    named = {f"{numbers[name.removesuffix('.npy')]:d}.npy": content for name, content in parts.items()}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in [("schema.json", schema.encode()), *sorted(named.items())]:
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return stream.getvalue()


class ForestNetwork(nn.Module):
    """A teacher with forests in the place of some heads; pictures (B, 3, H, W) to raw outputs by name.

    Args:
        network: The teacher's.
        forests: Output name to its forest.
        model: The teacher's outputs.
    """

    def __init__(self, network: MultiTaskNetwork, forests: Mapping[str, Forest], model: ModelSpec) -> None:
        super().__init__()
        self.network = network
        self._forests = dict(forests)
        self._outputs = {output.name: output for output in model.outputs}
        self._taps = Taps(network, [FEATURES])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = dict(self.network(images))
        features = self._taps.take()[0].detach().flatten(1).float().cpu().numpy()
        for name, forest in self._forests.items():
            raw = raw_answers(forest, features, self._outputs[name])
            outputs[name] = torch.from_numpy(raw).to(images.device)
        return outputs


def load_forest(folder: Path) -> tuple[ForestNetwork, Checkpoint]:
    """A teacher with the forests of a folder that `grow_forests` wrote, and the teacher's checkpoint.

    Raises:
        ModelError: Forests or teacher are missing, altered, or hold what a forest does not.
        MissingToolError: scikit-learn or skops is not installed.
    """
    _require_tools()
    answers = load_answers(folder)  # checks every file of the folder against its digest
    place, grew_on, features = _origin(folder / "manifest.json")
    teacher = load_checkpoint(folder.resolve() / place)
    if teacher.sha256 != grew_on:
        raise ModelError(
            "another teacher than the forests grew on",
            expected=f"weights with sha256 {grew_on[:12]}…",
            where=str(teacher.folder),
            do="Put the forests' own teacher there",
        )
    network = load_network(teacher)
    forests = {
        output.name: _read_forest(folder / f"{output.name}.skops", output, features=features)
        for output in answers.model.outputs
    }
    return ForestNetwork(network, forests, teacher.model), teacher


def _origin(path: Path) -> tuple[str, str, int]:
    """Where the teacher of forests lies, its digest, and how many features it gives."""
    manifest = read_json(path)
    made_from, features = manifest.get("made_from"), manifest.get("features")
    place, digest = manifest.get("teacher"), made_from.get("teacher") if isinstance(made_from, dict) else None
    if not (isinstance(place, str) and "\0" not in place and isinstance(digest, str) and type(features) is int):
        raise ModelError(
            "no 'teacher', 'made_from' or 'features' as edgeface writes them",
            expected="the manifest of forests",
            where=str(path),
            do="Grow them again",
        )
    return place, digest, features


def _read_forest(path: Path, output: OutputSpec, *, features: int) -> Forest:
    import skops.io
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    kind = RandomForestRegressor if TASKS[output.task].kind is Kind.SCORE else RandomForestClassifier
    try:
        if (size := unpacked_bytes(path)) > limits.WEIGHTS_BYTES:
            raise ValueError(f"{size:,} bytes, where at most {limits.WEIGHTS_BYTES:,} are read")
        odd = set(skops.io.get_untrusted_types(file=path)) - set(TRUSTED)
        forest = None if odd else skops.io.load(path, trusted=list(TRUSTED))
    except Exception as error:  # whatever a file of another version or a damaged one sets off
        raise _not_a_forest(path, f"it cannot be read ({type(error).__name__}: {error})") from error
    if odd:
        raise _not_a_forest(path, f"it holds {', '.join(sorted(odd))}")
    if type(forest) is not kind:
        raise _not_a_forest(path, f"a {type(forest).__name__}")
    try:
        _check_nodes(forest, path, output, features=features)
    except (AttributeError, TypeError, ValueError, IndexError) as error:  # parts that the file left out
        raise _not_a_forest(path, f"it is not whole ({type(error).__name__}: {error})") from error
    return forest


def _check_nodes(forest: Forest, path: Path, output: OutputSpec, *, features: int) -> None:
    """Refuse trees whose nodes point outside of the tree or of the features: they would be followed without a look."""
    values = 1 if TASKS[output.task].kind is Kind.SCORE else len(getattr(forest, "classes_", ()))
    if forest.n_features_in_ != features or not 1 <= values <= int(np.prod(output.shape)):
        raise _not_a_forest(path, f"a forest on {forest.n_features_in_} features with {values} values")
    for tree in (estimator.tree_ for estimator in forest.estimators_):
        own = np.arange(tree.node_count)
        children = np.stack([tree.children_left, tree.children_right])
        leaf = (children == -1).all(axis=0)
        # A child behind its parent leaves no room for a circle.
        inside = leaf | ((children > own) & (children < tree.node_count)).all(axis=0)
        looked = leaf | ((tree.feature >= 0) & (tree.feature < features))
        if not (inside & looked).all() or tree.n_features != features or tree.value.shape[2] != values:
            raise _not_a_forest(path, "a tree whose nodes lead out of it")


def _not_a_forest(path: Path, found: str) -> ModelError:
    import sklearn

    return ModelError(
        found,
        expected=f"a random forest that edgeface wrote, with a scikit-learn like this one ({sklearn.__version__})",
        where=str(path),
        do="Delete the folder and grow it again: edgeface distill --resume",
    )
