"""MODEL_CARD.md: what a bundle's model is, what it was trained on, what it may be used for, and how well it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# What an answer is and is not, for every task whose answer could be taken for a fact about a person.
_MEANING = {
    "gender": "How a face looks to the people who labelled the training pictures, in two classes. It is no statement "
    "about a person's gender, and errors differ between groups of people.",
    "age": "The age a face seems to have. A person's age cannot be read from a face; errors of ten years are common, "
    "and larger for children and for old people. Not for deciding what someone may buy, see or do.",
    "beauty": "How the raters of one study scored pictures: their taste, their culture, the photograph. It says "
    "nothing about a person's worth. Not for ranking people.",
    "beauty_score": "As beauty: a mean rating by a few raters, on that study's scale.",
    "expression": "Which posed or labelled expression a face resembles. It is not what a person feels.",
    "expression8": "As expression, with contempt.",
    "identity": "How alike two faces look to the network. Identifying people needs their consent, and the law in many "
    "places asks for more.",
    "attributes": "Visible marks as the raters of the training pictures saw them. It is no medical finding.",
}


def model_card(manifest: Mapping[str, Any], scorecard: Mapping[str, Any] | None = None) -> str:
    """The text of MODEL_CARD.md.

    Args:
        manifest: A bundle's manifest.
        scorecard: The content of scorecard.json, when it has been measured.
    """
    outputs: Sequence[Mapping[str, Any]] = manifest["outputs"]
    names = ", ".join(output["name"] for output in outputs)
    lines = [
        f"# {manifest['name']}",
        "",
        f"A face network for {manifest['target']}: one pass over a {manifest['model']['input_px']}-pixel crop answers "
        f"{names}.",
        "",
        "## Files",
        "",
        "| file | precision | bytes |",
        "|---|---|---:|",
        *(f"| {name} | {entry['precision']} | {entry['size_bytes']} |" for name, entry in manifest["files"].items()),
        "",
        "`manifest.json` holds the exact pre- and post-processing, `golden.npz` synthetic faces with the answers each "
        "file must give.",
        "",
        "## Answers",
        "",
        *(f"- **{output['name']}**: {output['decode']}" for output in outputs),
        "",
        "## What the answers mean, and what they do not",
        "",
        *_meanings(outputs),
        "",
        "## Data and licences",
        "",
        *(f"- {licence}" for licence in manifest["licences"] or ["none recorded"]),
        "",
        "**Research only.** At least one corpus forbids use in products: do not ship these files."
        if manifest["research_only"]
        else "No corpus this model was trained on is marked as for research only.",
        "",
        "## Measured",
        "",
        *_measured(scorecard),
        "",
        "## Limits",
        "",
        "- One face per crop. Crops that are cut otherwise than manifest.json says lose accuracy.",
        "- Measured on the corpora named here; light, cameras, ages and skin tones that are rare in them do worse.",
        "- Answers are given for any picture, a face or not: find the face first.",
        "",
        "## Made with",
        "",
        *(f"- {package} {version}" for package, version in manifest["versions"].items()),
        *(f"- {stage} weights sha256 `{digest}`" for stage, digest in manifest["checkpoints"].items()),
        "",
    ]
    return "\n".join(lines)


def _meanings(outputs: Sequence[Mapping[str, Any]]) -> list[str]:
    told = [f"- **{output['name']}**: {_MEANING[output['task']]}" for output in outputs if output["task"] in _MEANING]
    return told or ["Nothing here judges a person: the answers describe the picture."]


def _measured(scorecard: Mapping[str, Any] | None) -> list[str]:
    if scorecard is None:
        return ["Not measured yet: `edgeface eval` on this bundle."]
    tasks = sorted({task for row in scorecard["rows"] for task in row["tasks"]})
    lines = [
        f"| model | runtime | {' | '.join(tasks)} |",
        f"|---|---|{'---:|' * len(tasks)}",
    ]
    for row in scorecard["rows"]:
        if not row["tasks"]:
            lines.append(f"| {row['model']} | NOT_RUN: {row['reason']} |{' |' * len(tasks)}")
            continue
        cells = [_cell(row["tasks"][task]) if task in row["tasks"] else "" for task in tasks]
        lines.append(f"| {row['model']} | {row['runtime']} {row['precision']} | {' | '.join(cells)} |")
    return [*lines, "", "Metrics, samples and conditions: `scorecard.json`."]


def _cell(cell: Mapping[str, Any]) -> str:
    return f"{cell['value']:.4g} {cell['metric']}"
