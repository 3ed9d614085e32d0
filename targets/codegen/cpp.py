"""edgeface_example.cpp: pre- and post-processing in C++17, with OpenVINO where it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from targets.codegen.model import render


def cpp(manifest: Mapping[str, Any]) -> str:
    """The text of edgeface_example.cpp, from a bundle's manifest."""
    return render("edgeface_example.cpp.j2", manifest, comment="// ")
