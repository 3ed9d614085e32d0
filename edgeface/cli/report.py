"""`edgeface report`: one self-contained report.html of a run, with the files built from it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeface.cli.result import Result
from edgeface.errors import MissingToolError, ModelError, UsageError

if TYPE_CHECKING:
    from edgeface.data.pack import Pack
    from edgeface.evaluate import Evaluation, Runner
    from edgeface.report.html import Face
    from edgeface.report.scorecard import Entry, Scorecard

REPORT = "report.html"
SCORECARD = "scorecard.json"
_BUNDLES = Path("out")
_EXAMPLES = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder, or a bundle with its scorecard.json")
    parser.add_argument(
        "--bundle",
        type=Path,
        action="append",
        metavar="DIR",
        help="files built from the run; default: every bundle in out/ that names one of its checkpoints",
    )
    parser.add_argument(
        "--data",
        action="append",
        metavar="SOURCE",
        help="faces to measure on; default: the recipe's validation and test faces",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"default: RUN/{REPORT}")


def run(arguments: argparse.Namespace) -> Result:
    from edgeface.files import write_bytes
    from edgeface.runs import is_run

    folder: Path = arguments.run
    out: Path = arguments.out or folder / REPORT
    if is_run(folder):
        text, cards = _of_run(folder, bundles=arguments.bundle, sources=arguments.data)
    elif (folder / SCORECARD).is_file():
        if arguments.bundle or arguments.data:
            raise UsageError(
                "--bundle or --data with a bundle",
                expected="a run",
                where=str(folder),
                do="Name the run the bundle was built from, or drop these options",
            )
        text, cards = of_bundle(folder)
    else:
        raise ModelError(
            "neither a run nor a bundle with a scorecard" if folder.exists() else "no such folder",
            expected="a run folder that `edgeface distill` wrote, or a bundle that `edgeface build` scored",
            where=str(folder),
            do="Name a run, such as runs/demo",
        )
    write_bytes(out, text.encode())
    return Result(
        payload={"schema": 1, "report": str(out), "scorecards": [card.as_json() for card in cards]},
        text=f"report: {out}",
        exit_code=exit_code(cards),
    )


def exit_code(cards: Sequence[Scorecard]) -> int:
    """1 when a budget is broken, else 3 when something could not be run, else 0."""
    codes = {card.exit_code for card in cards}
    return next((code for code in (1, 3) if code in codes), 0)


def of_bundle(folder: Path) -> tuple[str, list[Scorecard]]:
    """The page of a bundle from the scorecard.json in it, without measuring again."""
    from edgeface.report.html import page
    from edgeface.report.scorecard import read_scorecard

    card = read_scorecard(folder / SCORECARD)
    return page(name=folder.resolve().name, cards=[card]), [card]


def _of_run(
    folder: Path, *, bundles: Sequence[Path] | None, sources: Sequence[str] | None
) -> tuple[str, list[Scorecard]]:
    from edgeface.config import load_recipe
    from edgeface.report.html import page
    from edgeface.report.scorecard import bundle_entries, stage_entries
    from edgeface.runs import RECIPE

    recipe = load_recipe(str(folder / RECIPE))
    wanted = list(dict.fromkeys(sources or (*recipe.data.val, *recipe.data.test)))
    if not wanted:
        raise UsageError("no faces to measure on", expected="--data SOURCE", where=str(folder / RECIPE))
    entries = stage_entries(folder)
    for bundle in bundles if bundles is not None else bundles_of(folder):
        entries += bundle_entries(bundle)
    cards: list[Scorecard] = []
    faces: list[Face] = []
    faces_by = ""
    for source in wanted:
        # A budget is never set on test faces: only the recipe's validation faces decide.
        card = score(entries, source, root=recipe.data.root, budget=recipe.budget if source in recipe.data.val else {})
        cards.append(card)
        if not faces:
            faces, faces_by = _examples(entries, source, root=recipe.data.root)
    curves = {
        stage: (folder / stage / "curve.csv").read_text(encoding="utf-8")
        for stage in ("teacher", "student", "qat")
        if (folder / stage / "curve.csv").is_file()
    }
    text = page(
        name=recipe.name,
        summary=recipe.summary,
        cards=cards,
        curves=curves,
        faces=faces,
        faces_by=faces_by,
        recipe=(folder / RECIPE).read_text(encoding="utf-8"),
    )
    return text, cards


def score(
    entries: Sequence[Entry],
    source: str,
    *,
    root: str = "",
    budget: Mapping[str, float] | None = None,
    known: dict[str, Evaluation] | None = None,
) -> Scorecard:
    """Measure models on a source, with progress on stderr.

    Args:
        entries: In the order of a model's life.
        source: `CORPUS[:PATH][@SPLIT]`, `synthetic:N[@SPLIT]` or `folder:PATH[@SPLIT]`.
        root: Folder that holds the corpora; "" takes the default.
        budget: Task name to the allowed worsening of files.
        known: As for scorecard.measure, of this source.
    """
    from edgeface.cli.console import progress
    from edgeface.report.scorecard import measure

    packs: dict[int, Pack] = {}

    def crops(runner: Runner) -> Pack:
        px = runner.spec.input_px
        if px not in packs:  # reading a source again costs more than scoring a student on it
            packs[px] = _crops(runner, source, root=root)
        return packs[px]

    with progress() as bar:
        tasks = {}

        def told(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(f"{name} on {source}", total=total, note="")
            bar.update(tasks[name], completed=done)

        return measure(entries, crops, budget=budget, progress=told, known=known)


def bundles_of(run: Path, *, out: Path = _BUNDLES) -> list[Path]:
    """Bundles in `out` whose manifest names a checkpoint of the run."""
    from edgeface.checkpoint import load_checkpoint

    digests = [load_checkpoint(run / stage).sha256 for stage in ("student", "qat") if (run / stage).is_dir()]
    manifests = sorted(out.glob("*/manifest.json"))
    texts = {path.parent: path.read_text(encoding="utf-8", errors="replace") for path in manifests}
    return [bundle for bundle, text in texts.items() if any(digest in text for digest in digests)]


def _crops(runner: Runner, source: str, *, root: str) -> Pack:
    from edgeface.data.sources import data_root
    from edgeface.evaluate import evaluation_pack

    return evaluation_pack(source, runner.spec, root=data_root(root))


def _examples(entries: Sequence[Entry], source: str, *, root: str) -> tuple[list[Face], str]:
    """Example faces with the answers of the last model that runs here: the file that ships, where there is one."""
    from edgeface.data.sources import parse_source
    from edgeface.evaluate import evaluate
    from edgeface.report.html import SYNTHETIC, example_faces

    if parse_source(source).corpus != SYNTHETIC:
        return [], ""
    for entry in reversed(entries):
        try:
            runner = entry.open()
        except MissingToolError:
            continue
        pack = _crops(runner, source, root=root)
        few = replace(
            pack,
            images=pack.images[:_EXAMPLES],
            keys=pack.keys[:_EXAMPLES],
            labels={name: values[:_EXAMPLES] for name, values in pack.labels.items()},
        )
        return example_faces(evaluate(runner, few, model=entry.name), few, count=_EXAMPLES), entry.name
    return [], ""
