"""The names that the packages themselves offer; a change here is a change of interface and belongs in CHANGELOG.md."""

from __future__ import annotations

import importlib

import pytest

PUBLIC = {
    "edgeface": ["__version__"],
    "distill": [],
    "quantize": [],
    "targets": [],
}


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names_are_those_agreed(package: str) -> None:
    module = importlib.import_module(package)
    offered = getattr(module, "__all__", [])
    assert sorted(offered) == PUBLIC[package]
    plain = {name for name in vars(module) if not name.startswith("_")}
    submodules = {name for name in plain if f"{package}.{name}" in importlib.sys.modules}  # type: ignore[attr-defined]
    borrowed = {"annotations", "importlib", "Path"}
    assert plain - submodules - borrowed - set(offered) == set()


def test_every_public_name_exists() -> None:
    for package, names in PUBLIC.items():
        for name in names:
            assert hasattr(importlib.import_module(package), name)
