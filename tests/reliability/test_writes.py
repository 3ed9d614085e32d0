"""Every file of the packages is written aside, flushed to disk and renamed: the sources are read for it."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from edgeface.files import write_bytes, write_folder

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("edgeface", "distill", "quantize", "targets")

# Calls that make a file, by the end of their name.
WRITERS = {
    *("write_text", "write_bytes", "touch", "save_file", "save_model", "savefig", "to_csv", "tofile"),
    *("np.save", "np.savez", "np.savez_compressed", "numpy.save", "json.dump", "torch.save", "extractall"),
    *("shutil.copy", "shutil.copyfile", "shutil.copy2", "shutil.copytree", "shutil.move"),
}
# Inside such a block a file is aside, or gone at its end.
ASIDE = ("write_folder", "TemporaryDirectory")

# Functions that write into a folder which their caller has put aside, or into a stream that is no file in its place.
WITHIN = {
    "edgeface/files.py": {"write_bytes": "is the way itself", "require_room": "deleted again"},
    "edgeface/data/pack.py": {"_with_header": "in the pack aside"},
    "edgeface/data/places.py": {"encode_places": "into memory"},
    "edgeface/data/shard_writer.py": {"_write_shard": "aside, flushed and renamed: a stream of gigabytes"},
    "edgeface/report/answers.py": {"keep": "into memory"},
    "edgeface/report/plots.py": {"svg": "into memory", "png": "into memory"},
    "targets/bundle.py": {"write_bundle": "in the bundle aside"},
    "targets/cold.py": {"*": "/proc, and an answer on a pipe"},
    "targets/interpreter.py": {"*": "an answer on a pipe"},
    "targets/runners.py": {"_try_once": "an empty mark, which is there or not"},
    "targets/silence.py": {"*": "nothing is kept of it"},
    "targets/tflite214.py": {"install": "in the environment aside"},
    "targets/devices/agent.py": {"*": "runs elsewhere, in a job folder"},
    "targets/devices/apart.py": {"*": "an answer on a pipe"},
    "targets/devices/arm64.py": {"*": "in a job folder, and in a system made anew each time"},
    "targets/devices/debian.py": {"*": "in a temporary folder"},
    "targets/devices/guard.py": {"*": "what a device prints, in a job folder"},
    "targets/devices/runtime.py": {"*": "in a runtime aside"},
}


def writes(source: str) -> list[tuple[str, str, int]]:
    """Calls that write a file outside any block that puts it aside: (function, call, line)."""
    found: list[tuple[str, str, int]] = []

    def visit(node: ast.AST, *, function: str, aside: bool) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if isinstance(node, ast.With):
            aside = aside or any(word in ast.unparse(item.context_expr) for item in node.items for word in ASIDE)
        if isinstance(node, ast.Call) and not aside and _is_write(node):
            found.append((function, ast.unparse(node.func), node.lineno))
        for child in ast.iter_child_nodes(node):
            visit(child, function=function, aside=aside)

    visit(ast.parse(source), function="", aside=False)
    return found


def _is_write(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    # A method, or the library's own; `write_bytes(path, content)` without a lead is ours.
    if any(name == writer or name.endswith(f".{writer}") for writer in WRITERS):
        return name != "write_bytes"
    if name.rpartition(".")[2] != "open":
        return False
    words = [*call.args, *(word.value for word in call.keywords if word.arg == "mode")]
    modes = [word.value for word in words if isinstance(word, ast.Constant) and isinstance(word.value, str)]
    return any(set(mode) <= set("rwaxbt+") and set(mode) & set("wax+") for mode in modes)


def test_every_file_is_written_aside() -> None:
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(files) > 100
    odd, known = [], set()
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        for function, call, line in writes(path.read_text(encoding="utf-8")):
            allowed = WITHIN.get(name, {})
            key = function if function in allowed else "*"
            if key in allowed:
                known.add((name, key))
            else:
                odd.append(f"{name}:{line} {function}: {call}")
    assert odd == []
    assert known == {(name, key) for name, keys in WITHIN.items() for key in keys}  # none is left of earlier code


@pytest.mark.parametrize(
    "line",
    [
        "path.write_text(text)",
        "(folder / 'a').write_bytes(content)",
        "open(path, 'w')",
        "path.open('ab')",
        "path.open(mode='x')",
        "np.savez(path, a=a)",
        "save_file(tensors, path)",
        "json.dump(value, stream)",
        "shutil.copyfile(a, b)",
    ],
)
def test_each_of_these_is_noticed_twin(line: str) -> None:
    assert writes(f"def f():\n    {line}")
    assert not writes(f"def f():\n    with write_folder(place) as aside:\n        {line}")


def test_reading_is_no_writing() -> None:
    assert (
        writes("open(path)\npath.open('rb')\nwrite_bytes(path, content)\nwrite_json(path, value)\nnp.load(path)") == []
    )


def test_a_file_and_all_of_a_folder_are_on_the_disk_before_they_are_in_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was renamed before it was flushed may be empty after a power cut."""
    said: list[tuple[str, str]] = []
    flush, rename = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        said.append(("flush", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        flush(descriptor)

    def replace(self: Path, target: Path) -> Path:
        said.append(("rename", self.name))
        return rename(self, target)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc: the name of an open file is not known here")
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    aside = f".file.{os.getpid()}.partial"
    write_bytes(tmp_path / "file", b"content")
    assert said == [("flush", aside), ("rename", aside), ("flush", tmp_path.name)]
    said.clear()
    with write_folder(tmp_path / "folder") as place:
        (place / "inner").mkdir()
        (place / "inner" / "weights").write_bytes(b"content")
    aside = f".folder.{os.getpid()}.partial"
    assert said[-2:] == [("rename", aside), ("flush", tmp_path.name)]
    assert {name for _, name in said[:-2]} == {"inner", "weights", aside}
