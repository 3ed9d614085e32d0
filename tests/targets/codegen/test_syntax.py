"""Every generated file parses, for every task alone and all together; a file that does not is noticed.

Parsing finds a lost brace, not a wrong type: what compiles and runs is in test_languages.py.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from edgeface.tasks import TASKS
from targets.codegen import GENERATORS, generate
from targets.codegen.model import camel

from .conftest import manifest_of, model


def _faults(node: Any) -> Iterator[str]:
    if node.is_error or node.is_missing:
        yield f"{node.type} at line {node.start_point[0] + 1}"
    for child in node.children:
        yield from _faults(child)


def kotlin_faults(text: str) -> list[str]:
    import tree_sitter
    import tree_sitter_kotlin

    language = tree_sitter.Language(tree_sitter_kotlin.language())
    return list(_faults(tree_sitter.Parser(language).parse(text.encode()).root_node))


def swift_faults(text: str) -> list[str]:
    import tree_sitter
    import tree_sitter_swift

    language = tree_sitter.Language(tree_sitter_swift.language())
    return list(_faults(tree_sitter.Parser(language).parse(text.encode()).root_node))


def python_faults(text: str) -> list[str]:
    try:
        ast.parse(text)
    except SyntaxError as error:
        return [str(error)]
    return []


FAULTS: dict[str, Callable[[str], list[str]]] = {"kt": kotlin_faults, "swift": swift_faults, "py": python_faults}


@pytest.mark.parametrize("float_input", [False, True])
@pytest.mark.parametrize("tasks", [*((task,) for task in TASKS), tuple(TASKS)], ids=lambda tasks: str(len(tasks)))
@pytest.mark.parametrize("target", GENERATORS)
def test_every_model_gives_code_that_parses(target: str, tasks: tuple[str, ...], float_input: bool) -> None:
    spec = model(tasks=tasks)

    for name, text in generate(manifest_of(spec, target, float_input=float_input)).items():
        suffix = name.rpartition(".")[2]
        assert suffix == "cpp" or FAULTS[suffix](text) == [], name
        assert "{%" not in text
        assert "{{ " not in text
        assert max(map(len, text.splitlines())) <= 160
        for task in tasks:
            assert f'"{task}"' in text
            assert camel(task) in text or task in text


@pytest.mark.parametrize("target", GENERATORS)
def test_code_of_a_stage_wise_age_parses_and_holds_its_bins(target: str) -> None:
    for name, text in generate(manifest_of(model(tasks=("age",), heads={"age": "3x3x3"}), target)).items():
        suffix = name.rpartition(".")[2]
        assert suffix == "cpp" or FAULTS[suffix](text) == [], name
        assert "3, 3, 3" in text
        assert "expectation" not in text  # of a class a year, which this model has not


@pytest.mark.parametrize("lost", ["}", ")", "{"])
@pytest.mark.parametrize(("target", "name"), [("android", "EdgeFace.kt"), ("ios", "EdgeFace.swift")])
def test_broken_file_is_noticed_twin(target: str, name: str, lost: str) -> None:
    text = generate(manifest_of(model(), target))[name]
    at = text.rindex(lost, 0, int(len(text) * 0.8))

    assert FAULTS[name.rpartition(".")[2]](text[:at] + text[at + len(lost) :]) != []


def test_broken_python_is_noticed_twin() -> None:
    text = generate(manifest_of(model(), "onnx"))["edgeface_example.py"]

    assert python_faults(text.replace("    return Answers(", "    return Answers((", 1)) != []


@pytest.mark.parametrize("target", GENERATORS)
def test_every_file_says_what_its_answers_are_not_and_who_may_use_it(target: str) -> None:
    manifest = manifest_of(model(), target)

    for name, text in generate(manifest).items():
        words = " ".join(line.removeprefix("//").strip() for line in text.splitlines())
        assert "no statement about a person's gender" in words
        assert "A person's age cannot be read from a face" in words
        assert "nothing about a person's worth" in words
        assert "RESEARCH ONLY" in words
        assert name.endswith(".py") or "NOT_RUN" in words
    manifest["research_only"] = False
    assert not any("RESEARCH ONLY" in text for text in generate(manifest).values())


def test_a_word_of_a_model_without_people_is_not_said_twin() -> None:
    for text in generate(manifest_of(model(tasks=("landmarks5",)), "openvino")).values():
        assert "gender" not in text
