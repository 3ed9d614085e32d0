"""Inputs for the readers of a bundle: its manifest, its golden answers, its TFLite file, its signature."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import io
import json
import random
import struct
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz.mutate import mutate_bytes, mutated_json
from benchmarks.fuzz.reader import Files, Grown, Reader, only
from edgeface.errors import EdgefaceError


@functools.cache
def bundle_manifest() -> dict[str, Any]:
    """A manifest as `write_bundle` writes it, with the least provenance."""
    from edgeface.config import to_plain
    from edgeface.models.network import model_spec
    from edgeface.specs import NetworkSpec, output_spec
    from targets.bundle import GOLDEN, crop_contract, input_contract, output_contract

    network = NetworkSpec(backbone="edge_s", width=0.125, input_px=16)
    spec = model_spec(network, (output_spec("gender"), output_spec("landmarks5", mean_shape=((0.5, 0.5),) * 5)))
    entry = {
        "precision": "w8a8",
        "size_bytes": 100,
        "sha256": "",
        "macs": 5,
        "grids": {"gender": {"scale": 0.5, "zero_point": 3}},
        "float_layers": [],
        "golden_runtime": "tflite-xnnpack",
    }
    return {
        "schema": 1,
        "target": "android",
        "name": spec.name,
        "model": to_plain(spec),
        "input": input_contract(spec),
        "crop": crop_contract(spec),
        "outputs": [output_contract(output) for output in spec.outputs],
        "files": {"edge_s.w8a8.tflite": entry},
        "golden": {"file": GOLDEN, "sha256": "", "faces": 2},
        "checkpoints": {"student": "ab"},
        "provenance": {"student": {"seed": 0, "command": "x", "licences": ["x"], "research_only": False}},
        "licences": ["x"],
        "research_only": False,
        "versions": {"python": "3"},
        "commit": "",
    }


def golden_arrays() -> dict[str, Any]:
    faces = np.zeros((2, 16, 16, 3), np.uint8)
    return {
        "images": faces,
        "w8a8/gender": np.zeros((2, 2), np.int8),
        "w8a8/landmarks5": np.zeros((2, 10), np.float32),
    }


def npz(arrays: Mapping[str, Any]) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def with_digests(tree: Any, golden: bytes, file: bytes) -> Any:
    tree = copy.deepcopy(tree)
    with contextlib.suppress(KeyError, TypeError, IndexError):
        tree["golden"]["sha256"] = hashlib.sha256(golden).hexdigest()
    with contextlib.suppress(KeyError, TypeError, IndexError, AttributeError):
        for entry in tree["files"].values():
            entry["sha256"] = hashlib.sha256(file).hexdigest()
    return tree


def tiny_bundle() -> Files:
    """The files of a whole bundle whose model is none."""
    golden, file = npz(golden_arrays()), b"\x1c\0\0\0TFL3" + b"\0" * 92
    manifest = with_digests(bundle_manifest(), golden, file)
    return {"manifest.json": json.dumps(manifest).encode(), "golden.npz": golden, "edge_s.w8a8.tflite": file}


def bundle_reader() -> Reader:
    from targets.bundle import grids_of, judge_golden, read_bundle
    from targets.codegen import generate
    from targets.devices.shipped import open_bundle
    from targets.model_card import model_card
    from targets.runners import locate

    files = tiny_bundle()
    whole = json.loads(files["manifest.json"])

    def make(dice: random.Random) -> Files:
        return {**files, "manifest.json": mutated_json(dice, whole)}

    def read(folder: Path) -> object:
        failed = None
        steps: tuple[Callable[[], object], ...] = (
            lambda: locate(folder),
            lambda: locate(folder / "edge_s.w8a8.tflite"),
            lambda: locate(folder, precision="w8a8"),
            lambda: [grids_of(entry) for entry in read_bundle(folder)["files"].values()],
        )
        try:
            steps[(folder / "manifest.json").stat().st_size % len(steps)]()
        except EdgefaceError as error:
            failed = error
        shipped = open_bundle(folder)
        manifest = dict(shipped.manifest)
        for path in shipped.files:
            found = {name: shipped.golden[f"w8a8/{name}"] for name in ("gender", "landmarks5")}
            judge_golden(manifest, path.name, shipped.golden, found, runtime="tflite-xnnpack")
        generate(manifest)
        model_card(manifest, None)
        if failed is not None:
            raise failed
        return shipped

    return Reader(make=make, read=read, grown=only("manifest.json", files))


def golden_reader() -> Reader:
    from targets.bundle import read_golden

    plain = npz(golden_arrays())
    headers = ("|u1", "<f4", "|O", "<U8", "|V0", "<i8", "|S4", "('<i4', (3,))", "<M8[s]", "[('a', '<i4')]")
    shapes = (
        "(2, 16, 16, 3)",
        "(2, 2)",
        "(1099511627776,)",
        "(-1,)",
        "(-2, -3)",
        "()",
        "(0,)",
        "(2**3,)",
        "(" * 500,
        "'a'",
    )

    def make(dice: random.Random) -> Files:
        kind = dice.randrange(4)
        if kind == 0:
            content = mutate_bytes(dice, plain)
        else:
            stream = io.BytesIO()
            method = dice.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
            with zipfile.ZipFile(stream, "w") as archive:
                for name, values in golden_arrays().items():
                    member = io.BytesIO()
                    np.save(member, values, allow_pickle=False)
                    body = member.getvalue()
                    if dice.randrange(3) == 0:
                        body = mutate_bytes(dice, body)
                    elif dice.randrange(3) == 0:
                        descr, order = dice.choice(headers), dice.choice(("True", "False", "0"))
                        head = f"{{'descr': {descr if descr[0] in '([' else repr(descr)}, 'fortran_order': {order}, "
                        head += f"'shape': {dice.choice(shapes)}, }}\n"
                        size = struct.pack("<H", dice.choice((len(head), len(head), 65535, 0)))
                        body = b"\x93NUMPY" + dice.choice((b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\x09\0")) + size
                        body += head.encode() + dice.choice((values.tobytes(), b"", b"\0" * 100_000, b"\x80\x04K\x01."))
                    called = dice.choice((f"{name}.npy",) * 8 + ("../x.npy", "/", "images.npy", name))
                    archive.writestr(zipfile.ZipInfo(called), body, method)  # a plain name would add the time of day
            content = stream.getvalue()
            if kind == 1:
                content = mutate_bytes(dice, content)
        return embed(content)

    def embed(content: bytes) -> Files:
        manifest = with_digests(bundle_manifest(), content, b"")
        return {"manifest.json": json.dumps(manifest).encode(), "golden.npz": content}

    grown = Grown(embed=embed, taken=lambda files: files["golden.npz"])
    return Reader(make=make, read=read_golden, grown=grown)


@functools.cache
def small_tflite() -> bytes:
    """A convolution and a reshape with weights, a signature and a note."""
    from targets.flatbuffer import Flatbuffer, import_tool, options

    schema = import_tool("ai_edge_litert.schema_py_generated")
    model, graph, code = schema.ModelT(), schema.SubGraphT(), schema.OperatorCodeT()
    code.version, code.builtinCode, code.deprecatedBuiltinCode = 1, 3, 3
    model.version, model.description = 3, b"small"
    model.buffers, model.operatorCodes, model.subgraphs = [schema.BufferT()], [code], [graph]
    graph.name, graph.tensors, graph.operators, graph.inputs, graph.outputs = b"main", [], [], [0], [3]
    file = Flatbuffer.__new__(Flatbuffer)
    file.model = model
    file.add_tensor("image", (1, 4, 4, 3), "INT8")
    file.add_constant("weight", np.ones((2, 1, 1, 3), np.int8))
    file.add_constant("bias", np.ones(2, np.int32))
    file.add_tensor("gender", (1, 4, 4, 2), "INT8")
    file.set_grid(0, [0.5], [3])
    file.set_grid(1, [0.5, 0.25], [0, 0])
    conv = options("Conv2DOptionsT")
    conv.strideH = conv.strideW = 1
    graph.operators = [file.operator("CONV_2D", [0, 1, 2], [3], options=conv)]
    signature, first, last = schema.SignatureDefT(), schema.TensorMapT(), schema.TensorMapT()
    first.name, first.tensorIndex, last.name, last.tensorIndex = b"image", 0, b"gender", 3
    signature.signatureKey, signature.inputs, signature.outputs = b"serving_default", [first], [last]
    model.signatureDefs = [signature]
    file.set_metadata("edgeface", json.dumps({"schema": 1, "precision": "w8a8"}).encode())
    return file.pack()


def tflite_reader() -> Reader:
    from targets.flatbuffer import Flatbuffer, macs, operations
    from targets.tflite import read_note

    content = small_tflite()

    def make(dice: random.Random) -> Files:
        if dice.randrange(2):
            return {"a.tflite": mutate_bytes(dice, content)}
        data = bytearray(content)  # offsets and lengths stand on multiples of four
        for _ in range(1 << dice.randrange(3)):
            at = 4 * dice.randrange(len(data) // 4)
            (now,) = struct.unpack_from("<i", data, at)
            near = dice.choice(
                (now + 1, now - 1, now + 4, now - 4, -now, now * 2, dice.randrange(len(data)), 0, -1, 2**31 - 1)
            )
            struct.pack_into("<i", data, at, max(-(2**31), min(2**31 - 1, near)))
        return {"a.tflite": bytes(data)}

    def read(folder: Path) -> object:
        path = folder / "a.tflite"
        data = path.read_bytes()
        file = Flatbuffer(data)
        read_note(path)
        failed = None
        for index in range(len(file.tensors)):
            try:
                file.constant(index)
            except EdgefaceError as error:
                failed = error
            file.name(index), file.shape(index), file.dtype(index)
            file.scales(index), file.zero_points(index), file.axis(index)
        found = operations(data), macs(data), file.outputs, [file.version(each) for each in file.operators], file.input
        if failed is not None:
            raise failed
        return found

    return Reader(make=make, read=read, grown=only("a.tflite"))


def signature_reader() -> Reader:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from targets.signing import MANIFEST, SIGNATURE, private_key, public_key, seal, verify

    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    secret = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    public = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    with tempfile.TemporaryDirectory() as name:
        for file, content in {**tiny_bundle(), "MODEL_CARD.md": b"card"}.items():
            (Path(name) / file).write_bytes(content)
        seal(Path(name), key=key)
        files = {f"bundle/{path.name}": path.read_bytes() for path in sorted(Path(name).iterdir())}
    told, signed = f"bundle/{MANIFEST}", f"bundle/{SIGNATURE}"
    manifest = json.loads(files[told])

    def make(dice: random.Random) -> Files:
        made = {**files, "own.pub": public, "own.key": secret}
        kind = dice.randrange(4)
        if kind == 0:  # whoever holds the key may sign anything
            made[told] = mutated_json(dice, manifest)
            made[signed] = key.sign(made[told])
        else:
            name = dice.choice(("own.pub", "own.key", signed, told, "bundle/golden.npz"))
            made[name] = mutate_bytes(dice, made[name])
        return made

    def read(folder: Path) -> object:
        private_key(folder / "own.key")
        verify(folder / "bundle", key=public_key(folder / "own.pub"))
        return None

    return Reader(make=make, read=read, grown=only("own.pub", {**files, "own.key": secret}))
