"""`edgeface eval`: score a model on labelled faces, and against its teacher."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from edgeface.cli.result import Result
from edgeface.specs import RUNTIMES

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgeface.data.pack import Pack
    from edgeface.evaluate import Evaluation, Runner
    from edgeface.specs import ModelSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a run, a checkpoint, a bundle, or a model file")
    parser.add_argument(
        "--data",
        required=True,
        metavar="SOURCE",
        help="labelled faces: CORPUS[:PATH][@SPLIT], synthetic:N[@SPLIT], folder:PATH or webdataset:PATH",
    )
    parser.add_argument("--runtime", choices=RUNTIMES, metavar="R", help=f"one of {', '.join(RUNTIMES)}")
    parser.add_argument("--precision", metavar="P", help="which file of a bundle; default: w8a8")
    parser.add_argument("--teacher", metavar="MODEL", help="also measure the agreement with this model")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads; default: 1")
    parser.add_argument(
        "--spec", metavar="FILE", help="a TOML or JSON file that says what a MODEL of others takes and answers"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where checkpoints run; files run on the CPU"
    )
    parser.add_argument(
        "--pairs",
        metavar="FILE",
        help="identity: a list of pairs in LFW's format, or 'drawn': from identity labels; default: the list that the "
        "source publishes (lfw@pairs), else drawn",
    )
    parser.add_argument(
        "--answers",
        type=Path,
        metavar="DIR",
        help="also keep the raw answers, by face, for a recipe's teacher.frozen; one folder a source. Of shards "
        "(webdataset:PATH) only that: as fp16, resumable, shared by the processes that torchrun starts",
    )
    parser.add_argument("--strict", action="store_true", help="stop at the first sample that cannot be read")


def run(arguments: argparse.Namespace) -> Result:
    from dataclasses import replace

    from edgeface.evaluate import teacher_agreement
    from targets.runners import open_to_score

    opened = {
        arguments.model: open_to_score(
            Path(arguments.model),
            runtime=arguments.runtime,
            precision=arguments.precision,
            threads=arguments.threads,
            described=arguments.spec,
            device=arguments.device,
        )
    }
    if arguments.teacher:
        opened[arguments.teacher] = open_to_score(
            Path(arguments.teacher), threads=arguments.threads, device=arguments.device
        )
    if arguments.answers and arguments.data.startswith("webdataset:"):
        return _answer_shards(arguments, opened[arguments.model])
    packs: dict[int, Pack] = {}
    for runner in opened.values():
        if runner.spec.input_px not in packs:
            packs[runner.spec.input_px] = _pack(arguments.data, runner.spec, strict=arguments.strict)
    results = {name: _score(name, runner, packs[runner.spec.input_px]) for name, runner in opened.items()}
    result = results[arguments.model]
    if arguments.answers:
        _keep(result, packs[opened[arguments.model].spec.input_px], arguments.answers)
    if arguments.teacher:
        result = replace(result, agreement=teacher_agreement(result, results[arguments.teacher]))
    if arguments.pairs:
        result = verified(result, pairs=arguments.pairs)
    return Result(payload=result.as_json(), text=render(result, teacher=arguments.teacher or ""))


def _answer_shards(arguments: argparse.Namespace, runner: Runner) -> Result:
    """Ask a model about every sample of a set of shards, this process's share of them; nothing is scored."""
    import os

    from distill.streaming import store_answers
    from edgeface.cli.console import progress
    from edgeface.cli.supervision import terms_of
    from edgeface.data.stream import open_stream
    from edgeface.errors import UsageError
    from edgeface.files import sha256_file, sha256_json

    for name in ("teacher", "pairs"):
        if getattr(arguments, name):
            raise UsageError(
                f"--{name} with --answers of shards", expected="--answers alone", where="edgeface eval", do="Drop one"
            )
    stream = open_stream(arguments.data, px=runner.spec.input_px, margin=1.0)
    assert stream is not None, "the source is one of shards"
    path = Path(arguments.model)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    rank, world = (int(os.environ.get(name, plain)) for name, plain in (("RANK", "0"), ("WORLD_SIZE", "1")))
    licences, research_only = terms_of(path)
    with progress() as bar:
        task = bar.add_task(f"asking {arguments.model}", total=None, note="")
        stored = store_answers(
            runner,
            stream,
            arguments.answers,
            made_from=sha256_json([runner.runtime, runner.precision, *map(sha256_file, files)]),
            licences=licences,
            research_only=research_only,
            rank=rank,
            world=world,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    shards = stream.shards.shards
    payload = {
        "schema": 1,
        "model": arguments.model,
        "runtime": runner.runtime,
        "precision": runner.precision,
        "data": arguments.data,
        "answers": str(arguments.answers),
        "samples": len(stream),
        "own_samples": sum(shard.samples for shard in shards[rank::world]),
        "rank": rank,
        "world": world,
        "complete": stored is not None,
    }
    left = "" if stored is not None else "; other processes still owe some"
    text = f"{payload['own_samples']} of {len(stream)} faces of {arguments.data} answered in {arguments.answers}{left}"
    return Result(payload=payload, text=text)


def _keep(result: Evaluation, pack: Pack, folder: Path) -> None:
    """Store a model's answers as distill.foreign reads them."""
    from distill.foreign import sample_keys, save_answers
    from edgeface.cli.supervision import terms_of
    from edgeface.errors import OutputError

    if folder.exists():
        raise OutputError("already there", expected="an absent folder", where=str(folder), do="Name another folder")
    licences, research_only = terms_of(Path(result.model))
    save_answers(
        folder,
        model=result.spec,
        keys=sample_keys(pack),
        outputs=result.outputs,
        licences=licences,
        research_only=research_only,
        extra={"source": result.source, "runtime": result.runtime, "precision": result.precision},
    )


def verified(result: Evaluation, *, pairs: str) -> Evaluation:
    """An evaluation with identity scored over other pairs of its pictures.

    Args:
        pairs: A file in LFW's format, whose pictures are the source's keys, or "drawn" to draw pairs from its labels.

    Raises:
        UsageError: The model answers no identity, or the source has no labels to draw from.
        DataError: The list cannot be used on this source.
    """
    from dataclasses import replace

    from edgeface.errors import UsageError
    from edgeface.verification import draw_pairs, read_pairs, score_pairs

    if "identity" not in result.predictions or (pairs == "drawn" and "identity" not in result.labels):
        raise UsageError(
            f"{result.model!r} does not answer 'identity'"
            if "identity" not in result.predictions
            else f"{result.source!r} has no identity labels",
            expected="a model with that output, and faces whose people are known",
            where="--pairs",
            do="Leave --pairs out",
        )
    listed = draw_pairs(result.keys, result.labels["identity"]) if pairs == "drawn" else read_pairs(Path(pairs))
    scores = {"identity": score_pairs(result.predictions["identity"], result.keys, listed)}
    return replace(
        result,
        tasks={**result.tasks, **scores},
        absent={task: why for task, why in result.absent.items() if task != "identity"},
        pairs=pairs,
    )


def _pack(source: str, spec: ModelSpec, *, strict: bool) -> Pack:
    from edgeface.cli.console import progress
    from edgeface.data.sources import data_root
    from edgeface.evaluate import evaluation_pack

    with progress() as bar:
        task = bar.add_task(f"pack {source}", total=None, note="")
        return evaluation_pack(
            source,
            spec,
            root=data_root(),
            strict=strict,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def _score(name: str, runner: Runner, pack: Pack) -> Evaluation:
    from edgeface.cli.console import progress
    from edgeface.evaluate import evaluate

    with progress() as bar:
        task = bar.add_task(name, total=len(pack), note="")
        return evaluate(runner, pack, model=name, progress=lambda done: bar.update(task, completed=done))


def render(result: Evaluation, *, teacher: str = "") -> RenderableType:
    """An evaluation for people: a row per task and metric, then what was left out and why."""
    from rich.console import Group
    from rich.text import Text

    from edgeface.cli.console import table
    from edgeface.evaluate import DRAWN, PUBLISHED
    from edgeface.metrics import main_metric
    from edgeface.report.table import shown, title
    from edgeface.tasks import TASKS

    rows = []
    for task, scores in result.tasks.items():
        main = main_metric(TASKS[task], scores)
        counts = ("n", "n_exact", "n_bins", "n_attributes")
        metrics = sorted((key for key in scores if key not in counts), key=lambda key: key != main)
        for index, metric in enumerate(metrics):
            first = index == 0
            row = [
                task if first else "",
                title(metric),
                shown(metric, scores[metric]),
                str(scores["n"]) if first else "",
            ]
            rows.append([*row, *([_agreed(result, task) if first else ""] if teacher else [])])
    unlabelled = [task for task in result.agreement if task not in result.tasks]
    columns = ["task", "metric", "value", "n", *([f"agreement with {teacher}"] if teacher else [])]
    if rows or not unlabelled:
        rows += [[task, "", "", str(result.agreement[task]["n"]), _agreed(result, task)] for task in unlabelled]
    else:  # no labels at all: agreement is the only column
        columns = ["task", f"agreement with {teacher}", "n"]
        rows = [[task, _agreed(result, task), str(result.agreement[task]["n"])] for task in unlabelled]
    how = f"{result.model}: {result.precision} on {result.runtime}, {result.samples} faces of {result.source}"
    # Not the table's own title: rich would wrap that to the table's width.
    heading = Text(how, "bold")
    notes = [Text(f"{task}: not scored, {why}", "dim") for task, why in result.absent.items()]
    if result.pairs:
        whose = {PUBLISHED: "that the source publishes", DRAWN: "drawn from its labels, people apart in ten folds"}
        notes.append(Text(f"identity: pairs {whose.get(result.pairs, f'of {result.pairs}')}", "dim"))
    notes += [Text(f"{task}: scored on labels derived from others", "dim") for task in result.derived]
    notes += [
        Text(f"skipped {len(keys)} ({reason}): {', '.join(keys[:3])}{' …' if len(keys) > 3 else ''}", "yellow")
        for reason, keys in result.skipped.items()
    ]
    if result.research_only:
        notes.append(Text(f"terms of the faces: {result.licence}", "dim"))
    if not rows:
        notes.append(Text("nothing to score: --teacher MODEL measures the agreement with another model", "yellow"))
        return Group(heading, *notes)
    return Group(heading, table(columns, rows), *notes)


def _agreed(result: Evaluation, task: str) -> str:
    """How far a task agrees with the teacher, by the first of its measures; "" where that was not measured."""
    from edgeface.report.table import shown, title

    measured = [(key, value) for key, value in result.agreement.get(task, {}).items() if key != "n"]
    return f"{shown(*measured[0])} ({title(measured[0][0])})" if measured else ""
