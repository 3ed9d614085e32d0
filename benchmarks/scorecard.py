"""The scorecard of a run with every bundle built from it, on every runtime that is installed, as JSON and Markdown.

    EDGEFACE_DATA=FOLDER python -m benchmarks.scorecard runs/mtfl-cpu out/* --data mtfl@test [--on DEVICE]

Writes benchmarks/results/scorecard.json and, beside it, scorecard.md. They hold figures only: no pictures, no answers
to single faces.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from edgeface.cli.report import score
from edgeface.config import load_recipe
from edgeface.files import write_json
from edgeface.report.entries import device_entries, runtime_entries, stage_entries
from edgeface.report.table import as_markdown
from edgeface.runs import RECIPE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("bundles", type=Path, nargs="*", metavar="BUNDLE")
    parser.add_argument("--data", required=True, metavar="SOURCE")
    parser.add_argument("--on", action="append", default=[], metavar="DEVICE")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scorecard.json"))
    arguments = parser.parse_args()
    recipe = load_recipe(str(arguments.run / RECIPE))
    entries = stage_entries(arguments.run)
    for bundle in arguments.bundles:
        entries += runtime_entries(bundle)
        for on in arguments.on:
            entries += device_entries(bundle, on)
    # A budget is never set on test faces.
    budget = recipe.budget if arguments.data in recipe.data.val else {}
    card = score(entries, arguments.data, root=recipe.data.root, budget=budget)
    write_json(arguments.out, card.as_json())
    typed = [arguments.run, *arguments.bundles, "--data", arguments.data, *(f"--on {on}" for on in arguments.on)]
    words = f"python -m benchmarks.scorecard {' '.join(map(str, typed))}"
    text = f"# Scorecard of {recipe.name} on {arguments.data}\n\n`{words}`\n\n{as_markdown(card)}"
    arguments.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
