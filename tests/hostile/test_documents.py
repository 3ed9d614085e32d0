"""Recipes, descriptions and JSON that are nested, enormous or endless."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeface import limits
from edgeface.config import load_recipe, parse_toml
from edgeface.errors import ConfigError
from edgeface.files import is_plain_name, read_json, read_limited
from targets.description import read_description

HOSTILE = {
    "nested arrays": "a = " + "[" * 20_000,
    "nested tables": "a = " + "{b = " * 20_000,
    "a key of 50,000 parts": "a." * 50_000 + "a = 1",
    "a header of 50,000 parts": "[" + "a." * 50_000 + "a]",
    "5,000 digits": "seed = " + "9" * 5000,
    "50,000 hexadecimal digits": "seed = 0x" + "f" * 50_000,
    "a NUL": "name = '\0'",
    "an infinite weight": "[tasks]\ngender = inf",
    "a date": "name = 1979-05-27",
    "300,000 bytes": "# " + "x" * 300_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_recipe_is_a_recipe_with_faults(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    start = time.process_time()
    with pytest.raises(ConfigError) as refused:
        load_recipe(str(path))
    str(refused.value).encode()
    assert time.process_time() - start < 30.0  # tomllib alone takes minutes for the long keys; milliseconds are due


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_description_is_refused_likewise(tmp_path: Path, text: str) -> None:
    path = tmp_path / "peer.toml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        read_description(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
def test_a_recipe_in_another_encoding_is_refused(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_bytes('name = "ä"\n[data]\ntrain = ["synthetic:8"]\n'.encode(encoding))
    with pytest.raises(ConfigError, match=r"r\.toml"):
        load_recipe(str(path))


def test_a_whole_recipe_is_read_twin(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('name = "x"\n[data]\ntrain = ["synthetic:8"]\n[tasks]\ngender = 1.0\n')
    assert load_recipe(str(path)).name == "x"


def test_the_longest_honest_line_of_numbers_is_read() -> None:
    shape = [[0.125, 0.875]] * 106
    assert parse_toml(f"mean_shape = {shape}")["mean_shape"] == shape


def test_an_endless_device_and_a_pipe_are_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "r.toml"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match="not a plain file"):
        load_recipe(str(pipe))
    with pytest.raises(ValueError, match="not a plain file"):
        read_limited(Path("/dev/zero"), limit=10)


def test_the_limit_is_that_of_the_bytes_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 10)
    assert read_limited(path, limit=10) == b"x" * 10
    with pytest.raises(ValueError, match="10 bytes, where at most 9 are read"):
        read_limited(path, limit=9)


def test_a_limit_of_exabytes_asks_for_no_memory(tmp_path: Path) -> None:
    """Found by fuzzing under a limit on memory: Python sets aside as much as it is asked to read."""
    path = tmp_path / "a"
    path.write_bytes(b"x" * 10)
    assert read_limited(path, limit=1 << 60) == b"x" * 10


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": NaN}', "[Infinity]", "9" * 5000, "\udcff", ""])
def test_what_is_no_json_is_a_value_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError):  # noqa: PT011 (its words are each reader's own)
        read_json(path)


@settings(max_examples=100)
@given(st.text(max_size=300))
def test_any_name_is_plain_only_when_it_stays_in_its_folder(name: str) -> None:
    if is_plain_name(name):
        assert Path(name).name == name
        assert (Path("folder") / name).parent == Path("folder")
    assert not is_plain_name(f"../{name}")
    assert not is_plain_name(f"{name}\0")


def test_an_honest_name_is_plain_twin() -> None:
    assert is_plain_name("edge_s.w8a8.tflite")
    assert not any(map(is_plain_name, ("", ".", "..", "a/b", "a\\b", "c:a", "a\n", None, 3, ["a"], "x" * 256)))


def test_an_error_is_fit_for_a_terminal() -> None:
    shown = str(ConfigError("a \x1b[2J b \ud800 c \u202e d", do="one\ntwo"))
    assert shown == "a \\x1b[2J b \\ud800 c \\u202e d. one\ntwo."
    assert str(ConfigError("ä × −")) == "ä × −."
    json.dumps(ConfigError("\ud800").as_json())


def test_limits_are_numbers_that_somebody_could_raise() -> None:
    names = [name for name in vars(limits) if name.isupper()]
    assert len(names) > 15
    assert all(getattr(limits, name) for name in names)
