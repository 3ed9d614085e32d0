"""The correlation of heads: rows by name, Pearson's formula, and weights that are known to be alike."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.correlation import POINTS, by_point, correlations, main, mean_of, picture, published, weight_rows
from edgeface.checkpoint import save_checkpoint
from edgeface.errors import UnsupportedError
from edgeface.files import read_json
from edgeface.models.network import MultiTaskNetwork, build_network, model_spec
from edgeface.specs import NetworkSpec, output_spec

MEAN = tuple((0.2 + 0.1 * k, 0.5) for k in range(5))


@pytest.fixture
def network() -> MultiTaskNetwork:
    spec = NetworkSpec(backbone="tcdcn", input_px=40)
    outputs = [output_spec("landmarks5", mean_shape=MEAN), *(output_spec(name) for name in ("pose", "smile"))]
    return build_network(spec, model_spec(spec, outputs), seed=0)


def head(network: MultiTaskNetwork, name: str) -> nn.Linear:
    layer = network.heads[name]
    assert isinstance(layer, nn.Linear)
    return layer


def test_every_coordinate_and_class_is_a_row_and_two_classes_are_one(network: MultiTaskNetwork) -> None:
    rows = weight_rows(network)
    assert len(rows) == 10 + 5 + 1
    assert list(rows)[:3] == ["landmarks5: left eye x", "landmarks5: left eye y", "landmarks5: right eye x"]
    assert list(rows)[-2:] == ["pose: right profile", "smile"]
    weights = head(network, "smile").weight.detach().double().numpy()
    np.testing.assert_array_equal(rows["smile"], weights[1] - weights[0])


def test_the_matrix_is_pearsons_correlation_written_as_loops(network: MultiTaskNetwork) -> None:
    rows = weight_rows(network)
    matrix, names = correlations(rows), list(rows)
    for i, j in ((0, 12), (3, 15), (11, 14)):
        first, second = rows[names[i]].tolist(), rows[names[j]].tolist()
        a, b = (sum(values) / len(values) for values in (first, second))
        top = sum((x - a) * (y - b) for x, y in zip(first, second, strict=True))
        bottom = math.sqrt(sum((x - a) ** 2 for x in first) * sum((y - b) ** 2 for y in second))
        assert matrix[i, j] == pytest.approx(top / bottom, rel=1e-9)
        assert matrix[i, j] != pytest.approx(matrix[i, j - 1], rel=1e-3)  # the twin: the neighbour's


def test_heads_that_share_weights_are_found_and_others_are_not(network: MultiTaskNetwork) -> None:
    points = head(network, "landmarks5").weight
    with torch.no_grad():
        head(network, "smile").weight[0] = 0.0
        head(network, "smile").weight[1] = -2.0 * points[7]  # the y of the left mouth corner
    rows = weight_rows(network)
    found = by_point(rows, correlations(rows))
    assert found["smile"]["left mouth"] > 0.5
    assert max(value for point, value in found["smile"].items() if point != "left mouth") < 0.3
    assert correlations(rows)[list(rows).index("smile"), 7] == pytest.approx(-1.0)


def test_seeds_are_averaged_and_each_says_by_itself_what_smile_reads() -> None:
    def of(eyes: float, mouth: float) -> dict[str, dict[str, float]]:
        return {"smile": dict(zip(POINTS, (eyes, eyes, mouth, mouth, mouth), strict=True))}

    seeds = [of(0.1, 0.3), of(0.2, 0.1)]
    assert mean_of(seeds)["smile"]["left eye"] == pytest.approx(0.15)
    (line,) = published({"networks": [{"name": "n", "points": mean_of(seeds), "by_seed": seeds}]})
    assert line["gains"] == pytest.approx([20.0, -10.0])
    (line,) = published({"networks": [{"name": "n", "points": seeds[0]}]})
    assert line["gains"] == pytest.approx([20.0])  # of a page of one seed


def test_the_picture_shows_the_matrix(network: MultiTaskNetwork, tmp_path: Path) -> None:
    from PIL import Image

    rows = weight_rows(network)
    matrix = correlations(rows)
    picture(rows, matrix, tmp_path / "one.png", title="x")
    picture(rows, -matrix, tmp_path / "other.png", title="x")
    one, other = (np.asarray(Image.open(tmp_path / name).convert("RGB"), int) for name in ("one.png", "other.png"))
    assert one.shape == other.shape
    assert (np.abs(one - other).sum(axis=2) > 60).mean() > 0.02  # the diagonal alone turns from red to blue


def test_a_network_stays_in_the_file_until_one_of_its_name_is_measured(tmp_path: Path) -> None:
    spec = NetworkSpec(backbone="tcdcn", input_px=40)
    model = model_spec(spec, [output_spec("landmarks5", mean_shape=MEAN), output_spec("smile")])
    for seed in (0, 1):
        weights = build_network(spec, model, seed=seed).state_dict()
        save_checkpoint(tmp_path / str(seed), kind="teacher", network=spec, model=model, weights=weights, provenance={})
    out = tmp_path / "correlation.json"

    def found(*arguments: str) -> dict[str, list[str]]:
        main([*arguments, "--out", str(out)])
        return {network["name"]: network["checkpoint"] for network in read_json(out)["networks"]}

    first = found(f"a={tmp_path / '0'}")
    both = found(f"b={tmp_path / '1'}")
    assert both == {**first, "b": both["b"]}
    assert found(f"a={tmp_path / '1'}") == {"a": both["b"], "b": both["b"]}  # the twin: the same name again
    assert f"`python -m benchmarks.correlation a={tmp_path / '1'}`" in out.with_suffix(".md").read_text(
        encoding="utf-8"
    )


def test_a_network_without_landmarks_that_a_layer_reads_is_refused(tmp_path: Path) -> None:
    spec = NetworkSpec(backbone="tcdcn", input_px=40)
    model = model_spec(spec, [output_spec("pose"), output_spec("smile")])
    weights = build_network(spec, model, seed=0).state_dict()
    save_checkpoint(tmp_path / "a", kind="teacher", network=spec, model=model, weights=weights, provenance={})
    with pytest.raises(UnsupportedError, match="pose, smile, and no landmarks"):
        main([f"a={tmp_path / 'a'}", "--out", str(tmp_path / "correlation.json")])
    assert not (tmp_path / "correlation.json").exists()
