"""Checkpoints, bundles and TFLite files whose manifests, headers and offsets lie."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.fuzz.bundles import bundle_manifest, golden_arrays, npz, small_tflite, tiny_bundle, with_digests
from distill.foreign import unpacked_bytes
from distill.forest import _origin
from edgeface import limits
from edgeface.arrays import read_arrays
from edgeface.checkpoint import MANIFEST, WEIGHTS, load_checkpoint, read_model_spec, save_checkpoint
from edgeface.config import to_plain
from edgeface.errors import ConfigError, ModelError
from edgeface.models.network import build_network, model_spec
from edgeface.specs import ModelSpec, NetworkSpec, output_spec
from targets.bundle import read_bundle, read_golden
from targets.flatbuffer import Flatbuffer, macs, operations
from targets.runners import locate

NETWORK = NetworkSpec(backbone="edge_s", width=0.125, input_px=16)
MODEL = model_spec(NETWORK, (output_spec("gender"),))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "student"
    weights = dict(list(build_network(NETWORK, MODEL, seed=0).state_dict().items())[:4])
    made = {"seed": 0, "licences": [], "research_only": False}
    save_checkpoint(folder, kind="student", network=NETWORK, model=MODEL, weights=weights, provenance=made)
    return folder


def _with(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def _header(folder: Path, change: Callable[[dict[str, Any]], None], *, length: int | None = None) -> None:
    """Another safetensors header, with the manifest's digest put right."""
    path = folder / WEIGHTS
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    change(header)
    words = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(words) if length is None else length) + words + content[8 + size :])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    _with(folder, lambda manifest: manifest["files"].update({WEIGHTS: digest}))


def test_a_whole_checkpoint_is_read_twin(checkpoint: Path) -> None:
    _header(checkpoint, lambda header: None)
    assert len(load_checkpoint(checkpoint).weights()) == 4


@pytest.mark.parametrize(
    "change",
    [
        lambda header: next(iter(header.values())).update(shape=[2**40]),
        lambda header: next(iter(header.values())).update(shape=[2**62, 2**62]),
        lambda header: next(iter(header.values())).update(data_offsets=[0, 2**63]),
        lambda header: next(iter(header.values())).update(data_offsets=[8, 0]),
        lambda header: next(iter(header.values())).update(dtype="F7"),
        lambda header: next(iter(header.values())).update(dtype=None),
        lambda header: header.update({"x" * 5000: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, "y": 5}),
    ],
)
def test_a_header_that_lies_is_a_broken_checkpoint(checkpoint: Path, change: Callable[[dict[str, Any]], None]) -> None:
    _header(checkpoint, change)
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        load_checkpoint(checkpoint).weights()


def test_a_header_that_promises_more_than_the_file_is_refused(checkpoint: Path) -> None:
    _header(checkpoint, lambda header: None, length=2**40)
    with pytest.raises(ModelError):
        load_checkpoint(checkpoint).weights()


def test_one_changed_byte_of_the_weights_is_noticed(checkpoint: Path) -> None:
    content = bytearray((checkpoint / WEIGHTS).read_bytes())
    content[len(content) // 2] ^= 1
    (checkpoint / WEIGHTS).write_bytes(content)
    with pytest.raises(ModelError, match="sha256"):
        load_checkpoint(checkpoint).weights()


@pytest.mark.parametrize("digest", ["0" * 64, "", None, 5, ["x"]])
def test_a_digest_that_is_another_is_noticed(checkpoint: Path, digest: Any) -> None:
    _with(checkpoint, lambda manifest: manifest["files"].update({WEIGHTS: digest}))
    with pytest.raises(ModelError):
        load_checkpoint(checkpoint).weights()


class _Trap:
    """What would make a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["extra.pkl", "pytorch_model.bin", "student.pt", "forest.joblib", WEIGHTS])
def test_a_pickle_in_a_checkpoint_is_never_unpickled(checkpoint: Path, name: str, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    (checkpoint / name).write_bytes(pickle.dumps(_Trap(sprung)))
    digest = hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()
    _with(checkpoint, lambda manifest: manifest["files"].update({name: digest}))
    if name == WEIGHTS:
        with pytest.raises(ModelError, match="cannot be read as safetensors"):
            load_checkpoint(checkpoint).weights()
    else:
        found = load_checkpoint(checkpoint)
        found.weights(), found.companions()
    assert not sprung.exists()


def test_the_trap_springs_twin(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(_Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "a\0b", "a\nb"])
def test_a_manifest_cannot_name_files_elsewhere(checkpoint: Path, name: str) -> None:
    _with(checkpoint, lambda manifest: manifest["files"].update({name: "0" * 64}))
    with pytest.raises(ModelError, match="leads out of the folder"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(kind=["student"]),
        lambda manifest: manifest.update(kind={}),
        lambda manifest: manifest.update(schema="1"),
        lambda manifest: manifest.update(files=[]),
        lambda manifest: manifest.update(network="edge_s"),
        lambda manifest: manifest["network"].update(width=1e308),
        lambda manifest: manifest["network"].update(input_px=2**63),
        lambda manifest: manifest["network"].update(hidden=True),
        lambda manifest: manifest["model"].update(input_px=10**9),
        lambda manifest: manifest["model"].update(std=[0.0, 1.0, 1.0]),
        lambda manifest: manifest["model"].update(outputs=[]),
        lambda manifest: manifest["model"].update(name="../x"),
        lambda manifest: manifest["model"]["outputs"].append(manifest["model"]["outputs"][0]),
        lambda manifest: manifest["model"]["outputs"][0].update(shape=[2**40]),
        lambda manifest: manifest["model"]["outputs"][0].update(shape=[-1]),
        lambda manifest: manifest["model"]["outputs"][0].update(task="taste"),
        lambda manifest: manifest["model"]["outputs"][0].update(threshold=1.0),
        lambda manifest: manifest.pop("model"),
    ],
)
def test_a_manifest_of_wrong_types_or_sizes_is_refused(
    checkpoint: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    _with(checkpoint, change)
    with pytest.raises(ModelError):
        load_checkpoint(checkpoint)


def test_a_spec_lists_every_fault_at_once() -> None:
    plain = to_plain(MODEL) | {"input_px": 0, "std": [0.0, 1.0, 1.0]}
    with pytest.raises(ConfigError) as refused:
        read_model_spec(plain, where="model")
    assert [fault.where for fault in refused.value.faults] == ["model.input_px", "model.std"]
    assert isinstance(read_model_spec(to_plain(MODEL), where="model"), ModelSpec)


# -- bundles -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "android"
    folder.mkdir()
    for name, content in tiny_bundle().items():
        (folder / name).write_bytes(content)
    return folder


def _golden(folder: Path, content: bytes) -> Path:
    """A bundle whose golden file is another one, with the manifest's digest put right."""
    (folder / "golden.npz").write_bytes(content)
    file = (folder / "edge_s.w8a8.tflite").read_bytes()
    (folder / MANIFEST).write_text(json.dumps(with_digests(bundle_manifest(), content, file)))
    return folder


def _archive(name: str, body: bytes, *, whole: bool = True) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for other, values in golden_arrays().items() if whole else ():
            member = io.BytesIO()
            np.save(member, values, allow_pickle=False)
            if other != name:
                archive.writestr(f"{other}.npy", member.getvalue())
        archive.writestr(f"{name}.npy", body)
    return stream.getvalue()


def _npy(descr: str, shape: str, body: bytes = b"") -> bytes:
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head + body


def test_a_whole_bundle_is_read_twin(bundle: Path) -> None:
    assert set(read_golden(_golden(bundle, npz(golden_arrays())))) == set(golden_arrays())
    assert locate(bundle).file == bundle / "edge_s.w8a8.tflite"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (_npy("'|u1'", "(1099511627776,)"), "promises 1,099,511,627,776 bytes"),
        (_npy("'<f8'", "(4611686018427387904, 4)"), "promises"),
        (_npy("'|u1'", "(-1,)"), "promises -1 bytes"),
        (_npy("'|u1'", "(100,)", b"\0" * 50), "does not hold the 100 bytes"),
        (_npy("'|u1'", "(1,)", b"\0" * 50), "does not hold the 1 bytes"),
        (_npy("'|O'", "(1,)", pickle.dumps(["x"])), "holds Python objects"),
        (_npy("'|u1'", "(" * 40), "cannot be read"),
        (_npy("'|u1", "(1,)"), "cannot be read"),
        (b"\x93NUMPY\1\0\x05\0{'a'\n", "cannot be read"),
        (b"\x93NUMPY\x09\0", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_an_array_that_lies_is_refused_before_memory_is_spent(bundle: Path, body: bytes, why: str) -> None:
    with pytest.raises(ModelError, match="cannot be read") as refused:
        read_golden(_golden(bundle, _archive("w8a8/gender", body)))
    assert why in str(refused.value)


def test_a_zip_bomb_meets_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(_archive("a", _npy("'|u1'", f"({1 << 24},)", b"\0" * (1 << 24)), whole=False))
    assert path.stat().st_size < 1 << 16
    assert read_arrays(path, limit=1 << 24)["a"].nbytes == 1 << 24
    with pytest.raises(ValueError, match="promises 16,777,216 bytes, where 16,777,215 are left"):
        read_arrays(path, limit=(1 << 24) - 1)


def test_several_arrays_share_one_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(npz({"a": np.zeros(600, np.uint8), "b": np.zeros(600, np.uint8)}))
    with pytest.raises(ValueError, match=r"'b\.npy' promises 600 bytes, where 400 are left"):
        read_arrays(path, limit=1000)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(target=["android"]),
        lambda manifest: manifest.update(target="windows"),
        lambda manifest: manifest.update(outputs=None),
        lambda manifest: manifest.update(crop={}),
        lambda manifest: manifest["crop"].update(side_over_box=10**400),
        lambda manifest: manifest["input"].update(mean=["a", 0, 0]),
        lambda manifest: manifest["outputs"][0].update(threshold=1.0),
        lambda manifest: manifest["outputs"][0].update(name="smile"),
        lambda manifest: manifest["outputs"].reverse(),
        lambda manifest: manifest["files"].update({"../x.tflite": {}}),
        lambda manifest: manifest["files"]["edge_s.w8a8.tflite"].update(
            grids={"gender": {"scale": 0, "zero_point": 1}}
        ),
        lambda manifest: manifest["files"]["edge_s.w8a8.tflite"].update(float_layers=[{}]),
        lambda manifest: manifest["files"]["edge_s.w8a8.tflite"].pop("size_bytes"),
        lambda manifest: manifest.update(provenance={"student": {}}),
        lambda manifest: manifest.update(golden="golden.npz"),
        lambda manifest: manifest.update(versions=[["3"]]),
        lambda manifest: manifest.update(licences={"x": 1}),
    ],
)
def test_a_bundle_whose_manifest_lies_is_none(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Found by fuzzing: each of these ended a verb with a KeyError, TypeError, OverflowError or a math domain error."""
    read_bundle(bundle)
    _with(bundle, change)
    with pytest.raises(ModelError, match="not a bundle"):
        read_bundle(bundle)


# -- stored answers, forests -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gender.skops", "answers.npz"])
def test_an_archive_of_a_version_yet_to_come_is_a_value_error(name: str, tmp_path: Path) -> None:
    """Found by fuzzing: zipfile raises NotImplementedError as it opens such a file."""
    content = bytearray(npz({"gender": np.zeros((2, 2), np.float32)}))
    path = tmp_path / name
    path.write_bytes(content)
    assert unpacked_bytes(path) > 16
    content[content.index(b"PK\1\2") + 6] = 255  # "version needed to extract", in the archive's directory
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"zip file version 25\.5"):
        unpacked_bytes(path)


@pytest.mark.parametrize(
    "change",
    [
        {"teacher": None},
        {"teacher": ["../teacher"]},
        {"teacher": "a\0b"},
        {"made_from": "ab"},
        {"made_from": {}},
        {"made_from": {"teacher": 5}},
        {"features": "64"},
        {"features": True},
        {"features": 1.5},
    ],
)
def test_a_manifest_of_forests_of_wrong_types_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    """Found by reading: each of these ended a verb with a KeyError, TypeError or ValueError."""
    path = tmp_path / "manifest.json"
    whole = {"teacher": "../teacher", "made_from": {"teacher": "ab"}, "features": 64}
    path.write_text(json.dumps(whole))
    assert _origin(path) == ("../teacher", "ab", 64)
    path.write_text(json.dumps(whole | change))
    with pytest.raises(ModelError, match="as edgeface writes them"):
        _origin(path)


# -- TFLite ------------------------------------------------------------------------------------------------------------


def test_a_small_file_is_read_twin() -> None:
    assert operations(small_tflite()) == ["CONV_2D"]
    assert macs(small_tflite()) == 4 * 4 * 2 * 3


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_truncated_file_is_refused(share: float) -> None:
    content = small_tflite()
    with pytest.raises(ModelError, match="not a whole TFLite file"):
        Flatbuffer(content[: int(share * len(content))])


def test_indices_beyond_the_file_are_refused() -> None:
    file = Flatbuffer(small_tflite())
    file.operators[0].inputs = [0, 1, 99]
    with pytest.raises(ModelError, match=r"tensor 99 of 4"):
        Flatbuffer(file.pack())
    file = Flatbuffer(small_tflite())
    file.tensors[1].buffer = 99
    with pytest.raises(ModelError, match="buffer 99"):
        Flatbuffer(file.pack())


def test_a_list_named_again_and_again_is_refused_before_it_is_read() -> None:
    """60 kB that stand for 25 million tensors."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    builder = flatbuffers.Builder(1 << 16)
    schema.TensorStart(builder)
    tensor = schema.TensorEnd(builder)
    schema.SubGraphStartTensorsVector(builder, 5000)
    for _ in range(5000):
        builder.PrependUOffsetTRelative(tensor)
    tensors = builder.EndVector()
    schema.SubGraphStart(builder)
    schema.SubGraphAddTensors(builder, tensors)
    graph = schema.SubGraphEnd(builder)
    schema.ModelStartSubgraphsVector(builder, 5000)
    for _ in range(5000):
        builder.PrependUOffsetTRelative(graph)
    graphs = builder.EndVector()
    schema.ModelStart(builder)
    schema.ModelAddSubgraphs(builder, graphs)
    builder.Finish(schema.ModelEnd(builder), b"TFL3")
    content = bytes(builder.Output())
    assert len(content) < 60_000
    start = time.process_time()
    with pytest.raises(ModelError, match="more objects than a file"):
        Flatbuffer(content)
    assert time.process_time() - start < 10.0  # reading them all takes minutes, refusing them milliseconds


def test_the_limit_on_objects_is_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TFLITE_OBJECTS", 10)
    with pytest.raises(ModelError, match="or than 10"):
        Flatbuffer(small_tflite())
