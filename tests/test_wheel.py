"""The wheel holds the four packages, whole, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import edgeface

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("edgeface", "distill", "quantize", "targets")
METADATA = f"edgeface-{edgeface.__version__}.dist-info"


def copy_of_the_source(folder: Path) -> Path:
    """What a wheel is built from; building in place would leave build/ behind, or pack what an old build/ holds."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        folder.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    return folder


def wheel_names(source: Path, *, out: Path) -> set[str]:
    """File names in the wheel of a source tree, built offline by this environment's setuptools."""
    script = "import sys, setuptools.build_meta as backend; backend.build_wheel(sys.argv[1])"
    out.mkdir()
    subprocess.run([sys.executable, "-c", script, str(out)], cwd=source, check=True, capture_output=True, timeout=300)
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def files_of(source: Path) -> set[str]:
    return {
        str(path.relative_to(source))
        for package in PACKAGES
        for path in (source / package).rglob("*")
        if path.is_file()
    }


def test_wheel_holds_every_file_of_the_four_packages_and_nothing_else(tmp_path: Path) -> None:
    source = copy_of_the_source(tmp_path / "source")
    for stray in ("benchmarks", "tests", "quantize_old"):
        (source / stray).mkdir()
        (source / stray / "__init__.py").touch()
    expected = files_of(source)

    names = wheel_names(source, out=tmp_path / "out")

    assert {name.split("/")[0] for name in names} == {*PACKAGES, METADATA}
    assert {name for name in names if not name.startswith(METADATA)} == expected
    for package in PACKAGES:
        assert f"{package}/py.typed" in names
    assert "edgeface/recipes/demo.toml" in names
    assert f"{METADATA}/licenses/LICENSE" in names


def test_a_file_left_out_of_package_data_is_missed_twin(tmp_path: Path) -> None:
    source = copy_of_the_source(tmp_path / "source")
    text = (source / "pyproject.toml").read_text(encoding="utf-8")
    assert '"recipes/*.toml"' in text
    (source / "pyproject.toml").write_text(text.replace('"recipes/*.toml"', '"recipes/*.json"'), encoding="utf-8")

    missing = files_of(source) - wheel_names(source, out=tmp_path / "out")

    assert "edgeface/recipes/demo.toml" in missing
