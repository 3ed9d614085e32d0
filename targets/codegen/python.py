"""edgeface_example.py: pre- and post-processing in NumPy, with OpenVINO or ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from targets.codegen.model import render


def python(manifest: Mapping[str, Any]) -> str:
    """The text of edgeface_example.py, from a bundle's manifest; its target chooses the runtime."""
    return render("edgeface_example.py.j2", manifest, comment="")
