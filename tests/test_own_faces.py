"""Every command of docs/your-own-faces.md does what the page says, on drawn faces in the place of somebody's own."""

from __future__ import annotations

import csv
import json
import re
import shlex
import tomllib
from pathlib import Path

import numpy as np
import pytest

from edgeface.cli.main import main
from edgeface.config import from_plain
from edgeface.data.folder import read
from edgeface.data.inspect import inspect
from edgeface.data.sources import open_source
from edgeface.specs import Recipe
from edgeface.tasks import TASKS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "your-own-faces.md"


def blocks(kind: str) -> list[str]:
    """The fenced blocks of the page of one kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines()]


TERMS, RECIPE = blocks("toml")

# The page's numbers for thousands of faces, and what a test has time for.
SMALLER = {
    "width = 0.25": "width = 0.125\ninput_px = 32",
    'backbone = "edge_s"': 'backbone = "edge_s"\nwidth = 0.25\ninput_px = 32',
    "epochs = 40": "epochs = 1\nbatch = 16",
    "epochs = 60": "epochs = 1\nbatch = 16",
    "epochs = 10": "epochs = 1\nbatch = 16",
    "smile = 1.0": "smile = 100.0",  # nothing is learned in one epoch
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `faces/` and `mine.toml` as the page describes them."""
    where = tmp_path_factory.mktemp("own")
    write_faces(where / "faces", count=72)
    recipe = RECIPE
    for old, new in SMALLER.items():
        assert recipe.count(old) == 1, old
        recipe = recipe.replace(old, new)
    (where / "mine.toml").write_text("threads = 1\n" + recipe, encoding="utf-8")
    return where


def write_faces(folder: Path, *, count: int) -> None:
    """Drawn faces as jpg files of two dozen people, with the columns that the page shows."""
    from PIL import Image

    columns = blocks("csv")[0].splitlines()[0].split(",")
    drawn = open_source(f"synthetic:{count}@train", root=Path())
    rows = []
    for index in range(count):
        person = "ann" if index < 2 else f"p{index // 3:02d}"
        name = f"{person}/{index % 3 + 1:02d}.jpg"
        (folder / person).mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.load(index)).save(folder / name, quality=90)
        x, y, side = drawn.crops[index]
        box = dict(zip("xywh", (x - side / 2, y - side / 2, side, side), strict=True))
        row: dict[str, object] = {
            "file_name": name,
            "person": person,
            "split": "test" if index % 24 >= 18 else "train",
            **{key: round(float(value), 2) for key, value in box.items()},
            "smile": int(drawn.labels["smile"][index]),
            "gender": TASKS["gender"].classes[drawn.labels["gender"][index]],
            "age": int(drawn.labels["age"][index][0]) if index % 2 else "20-29",
            "group_light": ("day", "night")[index % 2],
        }
        if index % 3:  # every third face has no landmarks
            points = np.round(drawn.labels["landmarks5"][index], 2)
            row |= {f"{axis}{k + 1}": points[k][place] for k in range(5) for place, axis in enumerate("xy")}
        rows.append(row)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    (folder / "terms.toml").write_text(TERMS, encoding="utf-8")


def test_the_table_of_the_page_is_read(tmp_path: Path) -> None:
    """Its three rows, with pictures of their names."""
    from PIL import Image

    (table,) = blocks("csv")
    names = [line.split(",")[0] for line in table.splitlines()[1:]]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (240, 200)).save(tmp_path / name)
    (tmp_path / "metadata.csv").write_text(table, encoding="utf-8")
    (tmp_path / "terms.toml").write_text(TERMS, encoding="utf-8")
    corpus = read(tmp_path, source="folder:faces", strict=True)
    assert corpus.keys == tuple(names)
    assert corpus.people == ("ann", "ann", "bob")
    assert corpus.labels["age"][2].tolist() == [20, 29]
    assert corpus.labels["smile"].tolist() == [1, -1, 0]
    assert corpus.crops[0].tolist() == [61 + 51, 40 + 59, 118]
    left, right = corpus.labels["landmarks5"][0][:2]
    assert left[0] < right[0], "left and right are as seen in the picture"
    assert corpus.groups["light"].tolist() == ["day", "night", "day"]
    assert corpus.licence.startswith("with consent")


def test_the_columns_of_the_page_are_columns() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row.split("|")[1])}
    assert {"file_name", "person", "split"} <= named
    assert {name for name in named if name in TASKS} >= {"smile", "gender", "glasses", "expression", "pose", "age"}
    assert not named - set(TASKS) - {"file_name", "person", "split", "x", "y", "w", "h"}


def test_the_recipe_of_the_page_is_a_recipe() -> None:
    recipe = from_plain(Recipe, tomllib.loads(RECIPE), where="the page")
    assert recipe.name == "mine"


def test_the_folder_is_what_the_page_says(place: Path) -> None:
    found = inspect(f"folder:{place}/faces@train", root=place)
    assert found["tasks"]["landmarks5"]["labelled"] < found["tasks"]["smile"]["labelled"], "some cells are empty"
    assert found["named"] == found["samples"]
    assert found["shared_people"]["test"] == 0


@pytest.mark.slow
def test_the_pages_commands_lead_to_a_bundle(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    typed = [shlex.split(command) for command in commands()]
    assert len(typed) == 9
    for name, *words in typed:
        assert name == "edgeface"
        code = main(words)
        out, err = capsys.readouterr()
        assert code == 0, f"{words}: {err}"
        assert out
    assert {"teacher", "student", "qat"} <= {path.name for path in Path("runs/mine").iterdir()}
    bundle = Path("out/android")
    assert {"manifest.json", "EdgeFace.kt", "MODEL_CARD.md", "edge_s.w8a8.tflite"} <= {f.name for f in bundle.iterdir()}
    licence = tomllib.loads(TERMS)["licence"]
    assert f"- folder: {licence}" in (bundle / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["research_only"] is False
    assert Path("faces/ann/01.predicted.png").is_file()


def test_a_command_of_another_folder_fails_twin(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert main(["data", "inspect", "folder:fases@train"]) == 2
