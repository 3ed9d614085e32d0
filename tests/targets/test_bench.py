"""Timing answers for every model under recorded conditions. Nothing here asserts a time or a ratio of two models."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgeface.cli.main import main
from edgeface.errors import MissingToolError, ModelError, UsageError
from targets import bench as timing
from targets.bench import ROUNDS, RUNS_A_ROUND, bench, median_interval, runtime_version, was_throttled
from targets.cold import cold_start
from targets.litert import delegated

from .conftest import random_pictures
from .test_description import description_of, stripped_tflite


def test_every_model_has_a_row_under_recorded_conditions(run_folder: Path, bundle_folder: Path) -> None:
    models = [
        (str(bundle_folder), None, "fp32"),
        (str(bundle_folder), "tflite-builtin", "w8a8"),
        (str(run_folder), None, None),
    ]

    found = bench(models, runs=ROUNDS)

    answered = [(row.model, row.runtime, row.precision) for row in found.rows]
    assert answered == [
        (str(bundle_folder), "tflite-xnnpack", "fp32"),
        (str(bundle_folder), "tflite-builtin", "w8a8"),
        (str(run_folder), "torch", "fake-quant"),
    ]
    assert found.rows[0].ratio_to_first == 1.0
    assert found.rows[0].ratio_interval == (1.0, 1.0)
    assert len({row.macs for row in found.rows}) == 1
    for row in found.rows:
        assert 0 < row.median_ms <= row.p90_ms <= row.p99_ms
        assert row.ratio_interval[0] <= row.ratio_to_first <= row.ratio_interval[1]
        assert row.size_bytes > 0
        assert row.device == "CPU"
        assert row.runtime_version
        assert row.split is not None
        assert min(row.split.pre_ms, row.split.post_ms, row.split.whole_ms) > 0
        assert (row.load_ms, row.peak_memory_bytes, row.sustained) == (None, None, None), "only when asked for"
    assert {"cpu", "versions", "threads", "runs", "load_average"} <= found.conditions.keys()
    assert json.loads(json.dumps(found.as_json()))["rows"][0]["precision"] == "fp32"


def test_operations_tell_who_computes_them(bundle_folder: Path) -> None:
    path = bundle_folder / "edge_s.w8a8.tflite"
    counts = delegated(path)

    rows = bench([(str(path), None, None), (str(path), "tflite-builtin", None)], runs=ROUNDS).rows

    xnnpack, builtin = (row.operations for row in rows)
    assert xnnpack is not None
    assert builtin is not None
    assert xnnpack["xnnpack"]["CONV_2D"] == counts["CONV_2D"][0] > 0
    total = sum(total for _, total in counts.values())
    assert sum(n for part in xnnpack.values() for n in part.values()) == total
    # Twin: without the delegate it has none of them.
    assert builtin.keys() == {"builtin"}
    assert sum(builtin["builtin"].values()) == total


def test_a_file_of_others_is_timed_and_its_answers_are_not_guessed(bundle_folder: Path, tmp_path: Path) -> None:
    import onnx

    node = onnx.helper.make_node("Flatten", ["x"], ["y"])
    graph = onnx.helper.make_graph(
        [node],
        "peer",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, "h", "w"])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, "n"])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "open.onnx"))
    graph.input[0].type.tensor_type.shape.dim[2].dim_value = 8
    graph.input[0].type.tensor_type.shape.dim[3].dim_value = 8
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=8), str(tmp_path / "peer.onnx")
    )

    rows = bench([(str(bundle_folder), None, "w8a8"), (str(tmp_path / "peer.onnx"), None, None)], runs=ROUNDS).rows

    assert rows[0].split is not None
    assert rows[1].split is None
    assert rows[1].operations == {"CPUExecutionProvider": {"Flatten": 1}}
    with pytest.raises(Exception, match="--spec"):
        bench([(str(tmp_path / "open.onnx"), None, None)], runs=ROUNDS)


def test_every_round_begins_with_another_model() -> None:
    seen: list[str] = []
    calls = [lambda name=name: seen.append(name) for name in "abc"]

    times = timing._interleaved(calls, [False, True, False], rounds=4, runs=2)  # type: ignore[arg-type]

    assert "".join(seen) == "aaabbbccc" + "bbbcccaaa" + "cccaaabbb" + "aaabbbccc"
    assert times.wall.shape == times.own.shape == (3, 4, 2)
    assert (times.wall > 0).all()
    assert np.array_equal(times.wall[0], times.own[0]), "the clock on the wall, where the core's is not asked"


@pytest.mark.parametrize("count", [5, 20, 80, 400])
def test_interval_of_a_median_is_the_widest_rank_the_binomial_allows(count: int) -> None:
    low, high = median_interval(np.arange(count, dtype=np.float64))

    def outside(rank: int) -> float:
        """Chance that fewer than `rank` + 1 of the values lie below the median."""
        return sum(math.comb(count, k) for k in range(rank + 1)) / 2**count

    assert low + high == count - 1
    assert low == 0 or outside(int(low)) <= 0.025
    assert outside(int(low) + 1) > 0.025, "one rank further in is too narrow"


def test_interval_of_a_median_holds_it_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    samples = np.exp(generator.normal(size=(400, 80)))  # skewed as times are, with median 1

    held = np.mean([low <= 1.0 <= high for low, high in map(median_interval, samples)])
    narrow = np.mean([low <= 1.0 <= high for low, high in (median_interval(each, share=0.5) for each in samples)])

    # Four standard deviations of 400 draws around 95 %.
    assert 0.95 - 4 * math.sqrt(0.95 * 0.05 / 400) <= held
    assert narrow < 0.75, "half as sure an interval holds it less often"


def test_slower_means_throttled_only_while_the_core_was_ours() -> None:
    assert was_throttled(1.02, 0.99) is False
    assert was_throttled(1.30, 0.99) is True
    assert was_throttled(1.30, 0.55) is None


def test_sustained_run_has_a_second_for_each_second(bundle_folder: Path) -> None:
    (row,) = bench([(str(bundle_folder), None, "w8a8")], runs=ROUNDS, sustained_s=2.0).rows

    assert row.sustained is not None
    assert [entry["second"] for entry in row.sustained.curve] == [0.0, 1.0]
    assert row.sustained.slowdown == row.sustained.last_ms / row.sustained.first_ms
    # No upper bound: threads that other tests left in this process count in its processor time.
    assert all(entry["runs"] >= 1 and entry["core_share"] > 0 for entry in row.sustained.curve)


@pytest.mark.slow
def test_first_start_is_measured_in_fresh_processes(run_folder: Path, bundle_folder: Path) -> None:
    models = [(str(bundle_folder), None, "fp32"), (str(run_folder), None, None)]

    rows = bench(models, runs=ROUNDS, starts=1).rows

    assert all(row.load_ms is not None and row.load_ms > 0 for row in rows)
    if sys.platform == "linux":
        # An interpreter cannot do without memory; the file's tensors alone are more than a page.
        assert all(row.peak_memory_bytes is not None and row.peak_memory_bytes > 4096 for row in rows)


@pytest.mark.slow
def test_a_process_that_cannot_open_the_model_says_so(bundle_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "peer.tflite"
    path.write_bytes((bundle_folder / "edge_s.w8a8.tflite").read_bytes()[:3000])

    with pytest.raises(ModelError, match=r"peer\.tflite"):
        cold_start(
            {
                "path": str(path),
                "runtime": "tflite-xnnpack",
                "precision": None,
                "threads": 1,
                "described": None,
                "device": "cpu",
            },
            starts=1,
        )


def test_processor_affinity_is_given_back(bundle_folder: Path) -> None:
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system does not pin processes to cores")
    before = os.sched_getaffinity(0)

    bench([(str(bundle_folder), None, "w8a8")], runs=ROUNDS)

    assert os.sched_getaffinity(0) == before


def test_more_runs_are_more_rounds(bundle_folder: Path) -> None:
    runs = ROUNDS * RUNS_A_ROUND * 2

    assert bench([(str(bundle_folder), None, "w8a8")], runs=runs).conditions["rounds"] == 2 * ROUNDS


def test_fewer_runs_than_rounds_are_refused(bundle_folder: Path) -> None:
    with pytest.raises(UsageError, match="--runs"):
        bench([(str(bundle_folder), None, None)], runs=ROUNDS - 1)


def test_a_second_that_is_first_and_last_is_refused(bundle_folder: Path) -> None:
    with pytest.raises(UsageError, match="--sustained"):
        bench([(str(bundle_folder), None, None)], sustained_s=1.0)


def test_files_do_not_run_on_a_gpu(bundle_folder: Path) -> None:
    with pytest.raises(UsageError, match="--device"):
        bench([(str(bundle_folder), None, None)], runs=ROUNDS, device="cuda")


def test_a_gpu_that_is_not_here_is_not_run(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(MissingToolError, match="--device cuda") as caught:
        bench([(str(run_folder), None, None)], runs=ROUNDS, device="cuda")
    assert caught.value.exit_code == 3


def test_a_checkpoint_on_a_gpu_names_it(run_folder: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")

    (row,) = bench([(str(run_folder), None, None)], runs=ROUNDS, device="cuda").rows

    assert row.device == f"GPU: {torch.cuda.get_device_name()}"
    assert row.waited_percent is None


def test_versions_are_those_of_the_runtime() -> None:
    assert runtime_version("torch")
    assert torch.__version__.startswith(runtime_version("torch").partition("+")[0])
    assert runtime_version("tflite-2.14") == "2.14.0"
    assert runtime_version("nothing") == ""


def test_the_committed_ratios_are_stable_and_their_table_is_theirs() -> None:
    from benchmarks.bench_stability import ALLOWED_PERCENT, markdown, spread_percent

    results = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
    found = json.loads((results / "bench_stability.json").read_text(encoding="utf-8"))
    text = (results / "bench_stability.md").read_text(encoding="utf-8")

    assert markdown(found) in text
    for row in (*found["as_it_is"]["rows"], *found["neighbours"]["rows"]):
        assert row["ratio_spread_percent"] == spread_percent(row["ratios"]) <= ALLOWED_PERCENT
    # Twin: one ratio that moved is noticed.
    found["as_it_is"]["rows"][1]["ratios"][0] *= 1.2
    assert spread_percent(found["as_it_is"]["rows"][1]["ratios"]) > ALLOWED_PERCENT
    assert markdown(found) not in text


# The verbs.


def test_a_precision_list_chooses_among_a_bundles_files_alone(
    bundle_folder: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", str(bundle_folder), str(run_folder), "--precision", "fp32,w8a8", "--runs", "20", "--starts", "0"]

    assert main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]

    assert [row["precision"] for row in rows] == ["fp32", "w8a8", "fake-quant"]
    contract = {"model", "runtime", "precision", "threads", "batch", "median_ms", "p90_ms", "p99_ms", "size_bytes"}
    assert all(contract | {"macs", "ratio_to_first"} <= row.keys() for row in rows)
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "fake-quant" in printed
    assert "xnnpack" in printed


def test_faces_without_labels_show_the_agreement_alone(
    bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "cache"))
    faces = tmp_path / "faces"
    faces.mkdir()
    with (faces / "metadata.csv").open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["file_name"])
        for place, picture in enumerate(random_pictures(5, 48)):
            Image.fromarray(picture).save(faces / f"{place}.png")
            rows.writerow([f"{place}.png"])
    fp32 = str(bundle_folder / "edge_s.fp32.tflite")
    words = ["eval", str(bundle_folder), "--data", f"folder:{faces}", "--teacher", fp32]

    assert main([*words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["tasks"] == {}
    assert {task: scores["n"] for task, scores in answer["teacher_agreement"].items()} == {
        "landmarks5": 5,
        "gender": 5,
        "smile": 5,
    }
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "agreement with" in printed
    assert "metric" not in printed
    assert f"{answer['teacher_agreement']['landmarks5']['distance_percent']:.2f}" in printed
    # Twin: an exchanged pair of outputs agrees less.
    peer, spec = stripped_tflite(bundle_folder, tmp_path), '[input]\ncolour = "RGB"\n'
    from targets.runners import open_model

    (tmp_path / "x.toml").write_text(
        spec + description_of(open_model(bundle_folder).spec, exchanged=True), encoding="utf-8"
    )
    main(["eval", str(peer), "--spec", str(tmp_path / "x.toml"), *words[2:], "--json"])
    exchanged = json.loads(capsys.readouterr().out)["teacher_agreement"]
    assert exchanged["gender"]["equal_share"] < answer["teacher_agreement"]["gender"]["equal_share"]
    shutil.rmtree(faces)
