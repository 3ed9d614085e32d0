"""What runs and sweeps keep of themselves is read as hostile: damaged, it is an error that names the file."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill.train import train
from edgeface.errors import ModelError
from edgeface.report.pareto import Candidate, with_fronts
from edgeface.specs import TrainSpec
from edgeface.sweep.trials import Combination, load_result, rows_of
from edgeface.sweep.whole import _are_times, _kept

COMBINATION = Combination(student="edge_s", width=0.25, input_px=16)
FILE = {
    "precision": "w8a8",
    "file": "out/android/edge_s.w8a8.tflite",
    "latency_ms": 0.003,
    "size_bytes": 35552,
    "macs": None,
    "tasks": {"gender": {"accuracy": 0.5}},
}
WHOLE: dict[str, Any] = {"key": "k", "state": "DONE", "reason": "", "seconds": 0.5, "files": [FILE]}


def _load(folder: Path, content: object) -> dict[str, Any] | None:
    path = folder / "result.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return load_result(path, key="k")


def test_a_whole_result_is_read_twin(tmp_path: Path) -> None:
    found = _load(tmp_path, WHOLE)
    assert found == WHOLE
    (row,) = rows_of(found, COMBINATION, folder=Path("trials/x"))
    assert (row.file, row.costs["size_bytes"], row.costs["macs"]) == (f"trials/x/{FILE['file']}", 35552, None)
    refused = _load(tmp_path, {"key": "k", "state": "REFUSED", "reason": "too large"})
    assert refused is not None
    assert [row.state for row in rows_of(refused, COMBINATION, folder=Path("x"))] == ["REFUSED"]


def test_a_result_of_another_key_or_none_is_none(tmp_path: Path) -> None:
    assert load_result(tmp_path / "absent.json", key="k") is None
    assert _load(tmp_path, {**WHOLE, "key": "other"}) is None


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "state": lambda result: result.update(state="done"),
    "reason": lambda result: result.update(reason=None),
    "seconds": lambda result: result.update(seconds=10**400),
    "files": lambda result: result.update(files=[]),
    "files.precision": lambda result: result["files"][0].pop("precision"),
    "files.file": lambda result: result["files"][0].update(file="../../etc/passwd"),
    "files.tasks": lambda result: result["files"][0].update(tasks={"gender": {"accuracy": "0.5"}}),
    "files.latency_ms": lambda result: result["files"][0].update(latency_ms=[1]),
    "files.macs": lambda result: result["files"][0].pop("macs"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_result_that_does_not_say_all_is_refused_by_name(tmp_path: Path, name: str) -> None:
    result = copy.deepcopy(WHOLE)
    CHANGES[name](result)
    with pytest.raises(ModelError, match=rf"no usable '{name}'") as refused:
        _load(tmp_path, result)
    assert refused.value.where == str(tmp_path / "result.json")


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"key": NaN}', "[" * 100_000, '{"key": ' + "9" * 5000 + "}", "\x00", "é".encode("latin-1")],
)
def test_a_result_that_is_no_json_is_refused(tmp_path: Path, content: str | bytes) -> None:
    """NaN, depth and long numbers ended a sweep with a ValueError."""
    path = tmp_path / "result.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ModelError, match="cannot be read"):
        load_result(path, key="k")


def test_costs_beyond_64_bits_are_compared() -> None:
    """Found by fuzzing: NumPy keeps them as objects, which have no isfinite."""
    small, large = (
        Candidate(student="edge_s", width=1.0, input_px=16, precision="w8a8", state="DONE", costs={"macs": cost})
        for cost in (1, 2**70)
    )
    found = with_fronts([large, small], tasks={}, cost="macs")
    assert [row.on_front for row in found] == [False, True]


def test_kept_times_are_those_of_as_many_files(tmp_path: Path) -> None:
    times = {"key": "k", "median_ms": [0.5, 1], "conditions": "x", "noisy": False}
    assert _are_times(times, 2)
    assert not any(
        _are_times({**times, **change}, count)
        for change, count in (({}, 3), ({"median_ms": [0.5, None]}, 2), ({"noisy": 1}, 2), ({"conditions": 5}, 2))
    )
    (tmp_path / "times.json").write_text('{"key": Infinity}')
    assert _kept(tmp_path / "times.json", "k") is None


# -- step checkpoints --------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(48, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"y": self.head(images.flatten(1)).squeeze(1)}


class Batches:
    steps_per_epoch = 1

    def epoch(self, epoch: int, *, start_step: int = 0) -> Any:
        from types import SimpleNamespace

        if start_step == 0:
            yield SimpleNamespace(images=torch.ones(2, 3, 4, 4), labels={"y": torch.ones(2)}, ids=torch.arange(2))


def _loss(outputs: Any, images: Tensor, labels: Any) -> tuple[Tensor, dict[str, Tensor]]:
    total = (outputs["y"] - labels["y"]).square().mean()
    return total, {"y": total}


def _train(folder: Path) -> Any:
    spec = TrainSpec(epochs=1, batch=2, lr=1e-3, warmup_epochs=0.0, checkpoint_s=1e-9)
    return train(Net(), _loss, Batches(), spec=spec, seed=0, key="k", partial=folder / "p", input_px=4)


@pytest.mark.parametrize("seconds", [10**400, -1, math.inf, "1", None])
def test_a_step_checkpoint_of_impossible_seconds_is_refused(tmp_path: Path, seconds: object) -> None:
    """Found by fuzzing: a whole number that no float holds ended training with an OverflowError."""
    _train(tmp_path)
    told = json.loads((tmp_path / "p/state.json").read_text())
    _train(tmp_path)  # the twin: as it was written, it is gone on with
    (tmp_path / "p/state.json").write_text(json.dumps({**told, "seconds": seconds}))
    with pytest.raises(ModelError, match=r"state\.json: cannot be read"):
        _train(tmp_path)
