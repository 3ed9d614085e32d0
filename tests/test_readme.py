"""The commands that README and CONTRIBUTING tell people to type are commands that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from edgeface.cli.main import _parse
from edgeface.config import list_recipes, load_recipe
from edgeface.errors import EdgefaceError

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md")


def commands(document: str) -> list[str]:
    """The lines of a document's `sh` blocks."""
    text = (ROOT / document).read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]


def fault(command: str) -> str:
    """Why a command could not be carried out as typed; "" when it could."""
    words = shlex.split(command)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    name, *rest = words
    if name in ("edgeface", ".venv/bin/edgeface"):
        try:
            _, arguments = _parse(rest)
            if getattr(arguments, "set", None):
                load_recipe("demo", overrides=arguments.set)
        except EdgefaceError as error:
            return str(error)
        return ""
    if name == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
        return "" if rest and set(rest) <= set(targets) else f"no such make target: {rest}"
    return f"{name} is neither edgeface nor make"


@pytest.mark.parametrize(
    ("document", "command"), [(document, command) for document in DOCUMENTS for command in commands(document)]
)
def test_a_documented_command_parses(document: str, command: str) -> None:
    assert fault(command) == ""


def test_the_two_commands_are_documented() -> None:
    assert {"make demo", "make test", "edgeface build --target android"} <= set(commands("README.md"))
    assert any(command.startswith("edgeface distill") for command in commands("README.md"))


@pytest.mark.parametrize(
    "command",
    [
        "edgeface biuld",
        "edgeface build --tagret android",
        "edgeface distill demo --set data.trian=1",
        "make dmeo",
        "rm x",
    ],
)
def test_a_command_that_does_not_exist_is_caught_twin(command: str) -> None:
    assert fault(command) != ""


@pytest.mark.parametrize("document", DOCUMENTS)
def test_inline_commands_name_verbs_that_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    from edgeface.cli.main import VERBS

    verbs = re.findall(r"`(?:\.venv/bin/)?edgeface ([a-z]+)", text)
    assert set(verbs) <= set(VERBS)


def test_every_recipe_that_is_no_row_of_a_table_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for recipe in list_recipes():
        assert f"| `{recipe.name}` |" in text or recipe.group


def test_the_tree_in_the_readme_has_every_folder() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.split("## The tree\n\n```text\n")[1].split("```")[0]
    named = re.findall(r"^( *)([a-z]+)/", block, flags=re.MULTILINE)
    assert {name for indent, name in named if not indent} == {
        path.name
        for path in ROOT.iterdir()
        if path.is_dir() and path.name in {"edgeface", "distill", "quantize", "targets", "tests", "benchmarks", "docs"}
    }
    packages = (ROOT / name for name in ("edgeface", "distill", "quantize", "targets"))
    inner = {path.name for package in packages for path in package.iterdir() if (path / "__init__.py").is_file()}
    inner.add("recipes")
    assert {name for indent, name in named if indent} == inner


@pytest.mark.parametrize("document", [*DOCUMENTS, "DECISIONS.md", "CHANGELOG.md"])
def test_links_between_documents_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("https://"):
            assert (ROOT / target).exists(), target
