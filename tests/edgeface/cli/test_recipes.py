"""`edgeface recipes`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeface.cli.main import main
from edgeface.config import list_recipes, load_recipe


def test_the_list_follows_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["schema"] == 1
    assert [recipe["name"] for recipe in answer["recipes"]] == [recipe.name for recipe in list_recipes()]
    assert all(set(recipe) == {"name", "source", "summary"} for recipe in answer["recipes"])


def test_rows_of_tables_are_listed_group_by_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    alone, *groups = capsys.readouterr().out.split("\nGroup ")
    assert "demo" in alone
    assert "balancer-famo" not in alone
    assert any(group.startswith("balancers:\n") and "balancer-famo" in group for group in groups)


def test_a_copy_is_the_same_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "mine.toml"
    assert main(["recipes", "--copy", "demo", str(path)]) == 0
    assert load_recipe(str(path)) == load_recipe("demo")
    assert str(path) in capsys.readouterr().out


def test_a_copy_into_a_folder_keeps_its_name(tmp_path: Path) -> None:
    assert main(["recipes", "--copy", "demo", str(tmp_path)]) == 0
    assert (tmp_path / "demo.toml").is_file()


@pytest.mark.parametrize(("name", "file"), [("dmeo", "a.toml"), ("demo", "taken.toml"), ("demo", "a.txt")])
def test_a_copy_that_cannot_be_made_changes_nothing(tmp_path: Path, name: str, file: str) -> None:
    (tmp_path / "taken.toml").write_text("kept", encoding="utf-8")
    assert main(["recipes", "--copy", name, str(tmp_path / file)]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["taken.toml"]
    assert (tmp_path / "taken.toml").read_text(encoding="utf-8") == "kept"
