"""Code that goes with a bundle: the crop and the decoding of its model, written out for the language of its target.

The crop is edgeface.data.geometry.crop_image in the same integers, so that an app cuts the bytes that were scored; the
decoding is edgeface.evaluate.decode. Everything a file holds comes from the bundle's manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from targets.codegen.cpp import cpp
from targets.codegen.kotlin import kotlin
from targets.codegen.python import python
from targets.codegen.swift import swift

# Target to the files its bundles carry, each with the function that writes it from a manifest.
GENERATORS: dict[str, tuple[tuple[str, Callable[[Mapping[str, Any]], str]], ...]] = {
    "android": (("EdgeFace.kt", kotlin),),
    "ios": (("EdgeFace.swift", swift),),
    "openvino": (("edgeface_example.py", python), ("edgeface_example.cpp", cpp)),
    "onnx": (("edgeface_example.py", python),),
}


def generate(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The code of a bundle.

    Args:
        manifest: A bundle's manifest.

    Returns:
        File name to text.
    """
    return {name: write(manifest) for name, write in GENERATORS[str(manifest["target"])]}
