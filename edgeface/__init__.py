"""edgeface: from labelled faces to small int8 networks that provably agree with their teacher."""

from __future__ import annotations

import importlib.util
from pathlib import Path

__version__ = "0.1.0"
__all__ = ["__version__"]


def _refuse_shadowed_stages() -> None:
    """A user's own quantize.py beside their script must not silently stand in for ours."""
    ours = Path(__file__).resolve().parent.parent
    for name in ("distill", "quantize", "targets"):
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:
            raise ImportError(
                f"edgeface: its package {name!r} was not found. Expected it beside {ours / 'edgeface'}. "
                "Reinstall edgeface."
            )
        if Path(found.origin).resolve().parent.parent != ours:
            raise ImportError(
                f"edgeface: {found.origin!r} hides edgeface's own package {name!r}. Expected {ours / name}. "
                "Rename that file or folder, or start Python from another folder."
            )


_refuse_shadowed_stages()
