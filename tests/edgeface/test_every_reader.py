"""What holds for every corpus: terms that reach the product, pictures that may be broken, a report before training."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from distill.stages import TrainingData, save_stage, terms_of_start
from distill.train import Trained
from edgeface.checkpoint import Checkpoint
from edgeface.cli.build import _refuse_research_only
from edgeface.config import from_plain
from edgeface.data.corpus import Corpus
from edgeface.data.inspect import inspect
from edgeface.data.pack import pack
from edgeface.data.sources import READERS, open_source
from edgeface.errors import DataError, UnsupportedError
from edgeface.models.network import build_network, model_spec
from edgeface.specs import IMAGENET, NetworkSpec, Recipe, StudentSpec, TransferSpec, output_spec
from targets.model_card import _terms

FACES = Path(__file__).resolve().parents[2] / "docs" / "faces.md"

# Corpus to the split that the tests' files fill; the others keep none, or have no files.
SPLITS = {
    "mtfl": "train", "fairface": "train", "ferplus": "train", "mebeauty": "train", "london": "test",
    "lsafbd": "train", "scut_fbp5500": "train", "utkface": "train", "fer2013": "train", "rafdb": "train",
    "celeba": "train", "aflw": "train", "afw": "test", "w300": "full", "wflw": "train", "lfw": "all",
    "ckplus": "train", "oulu_casia": "train",
}  # fmt: skip
EMBEDDED = ("fer2013",)  # its pictures are text in a table: test_expression_readers breaks those
PUBLISHED = sorted(set(READERS) - {"synthetic", "folder", "webdataset"})


def module(name: str) -> ModuleType:
    """A test file that writes a corpus in its published form."""
    spec = importlib.util.spec_from_file_location(f"writes_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every published corpus, in tiny."""
    root = tmp_path_factory.mktemp("corpora")
    for name in ("mtfl", "fairface", "ferplus", "mebeauty", "london"):
        (root / name).mkdir()
        module(f"test_{name}").write(root / name)
    beauty, people = module("test_beauty_readers"), module("test_people_readers")
    expression, landmark = module("test_expression_readers"), module("test_landmark_readers")
    for write in (beauty.write_lsafbd, beauty.write_scut, people.write_utkface, people.write_celeba, people.write_lfw):
        write(root)
    for write in (expression.write_fer2013, expression.write_rafdb, expression.write_ckplus, expression.write_oulu):
        write(root)
    for write in (landmark.write_w300, landmark.write_wflw, landmark.write_aflw):
        write(root)
    shutil.copytree(root / "w300" / "afw", root / "afw")
    return root


def opened(name: str, root: Path, *, strict: bool = False) -> Corpus:
    return open_source(f"{name}@{SPLITS[name]}", root=root, strict=strict)


@pytest.mark.parametrize("name", PUBLISHED)
def test_terms_reach_the_checkpoint_and_the_card_and_block_a_release(name: str, written: Path, tmp_path: Path) -> None:
    corpus = opened(name, written)
    assert corpus.licence
    checkpoint = saved(corpus, tmp_path)
    made = checkpoint.manifest["provenance"]
    assert made["licences"] == [f"{name}: {corpus.licence}"]
    assert made["research_only"] is corpus.research_only
    # A card lists the licences of a bundle's manifest; test_model_card holds that to the letter.
    card = _terms({"research_only": made["research_only"]})
    assert card.startswith("**Research only.**") is corpus.research_only
    if corpus.research_only:
        with pytest.raises(UnsupportedError, match="research only") as refused:
            _refuse_research_only(checkpoint.folder, precisions=["fp32"])
        assert corpus.licence in str(refused.value)
    else:
        _refuse_research_only(checkpoint.folder, precisions=["fp32"])


def test_only_two_corpora_allow_products(written: Path) -> None:
    """Their published terms: Creative Commons, attribution."""
    assert {name for name in PUBLISHED if not opened(name, written).research_only} == {"fairface", "london"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_page_says_the_terms_of_the_reader(name: str, written: Path) -> None:
    lines = FACES.read_text(encoding="utf-8").splitlines()
    (row,) = [line for line in lines if line.startswith(f"| `{name}` | ") and line.count("|") == 7]
    terms = row.rstrip(" |").rpartition("|")[2]
    corpus = opened(name, written)
    assert ("research only" in terms or "no licence" in terms) is corpus.research_only
    assert all(word in corpus.licence for word in ("CC BY 4.0", "no licence stated") if word in terms)


def test_what_begins_with_research_only_weights_stays_so(written: Path, tmp_path: Path) -> None:
    """Neither a start from other weights nor quantization on freer faces washes the terms off."""
    bound, free = opened("mebeauty", written), opened("london", written)
    first = saved(bound, tmp_path / "first")
    spec = StudentSpec(transfer=TransferSpec(start=str(first.folder)))
    began = saved(free, tmp_path / "second", spec=spec).manifest["provenance"]
    assert began["research_only"]
    assert began["licences"] == [f"london: {free.licence}", f"mebeauty: {bound.licence}"]
    assert not saved(free, tmp_path / "third").manifest["provenance"]["research_only"], "the twin"


def test_what_begins_with_published_weights_says_so(written: Path, tmp_path: Path) -> None:
    spec = StudentSpec(transfer=TransferSpec(start=IMAGENET))
    began = saved(opened("london", written), tmp_path, spec=spec).manifest["provenance"]
    assert any(licence.startswith("torchvision's weights: BSD-3-Clause") for licence in began["licences"])
    assert not began["research_only"]
    alone = saved(opened("london", written), tmp_path / "alone").manifest["provenance"]
    assert not any("torchvision" in licence for licence in alone["licences"]), "the twin"


def saved(corpus: Corpus, folder: Path, *, spec: StudentSpec | None = None) -> Checkpoint:
    """An untrained student's checkpoint, saved as a stage that learnt from these faces saves its own."""
    # Some of the tests' pictures are smaller than the corpus's own, and their crops lie outside.
    few = corpus.select(range(2))
    packed = pack(replace(few, crops=np.full((2, 3), 8, np.float32)), px=16, margin=1.0)
    outputs = {"gender": output_spec("gender")}
    network = NetworkSpec(backbone="tcdcn_relu", input_px=40)
    model = model_spec(network, tuple(outputs.values()))
    plain = {"name": "tiny", "data": {"train": [f"{corpus.name}@train"]}, "tasks": {"gender": 1.0}}
    return save_stage(
        folder / "student",
        kind="student",
        key="",
        network=network,
        model=model,
        trained=Trained(
            weights=dict(build_network(network, model).state_dict()), curve="", steps=0, seconds=0.0, samples=0
        ),
        recipe=from_plain(Recipe, plain, where="tiny"),
        data=TrainingData(train=(packed,), val=(), root=folder, outputs=outputs, content_hash=""),
        made_from={},
        start=terms_of_start(spec or StudentSpec()),
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_inspect_tells_what_a_user_must_know(name: str, written: Path) -> None:
    found = inspect(f"{name}@{SPLITS[name]}", root=written)
    corpus = opened(name, written)
    assert found["licence"] == corpus.licence
    assert found["samples"] == len(corpus) == sum(found["sizes"].values())
    assert set(found["tasks"]) == set(corpus.labels)
    for told in found["tasks"].values():
        if "classes" in told:
            assert sum(told["classes"].values()) == pytest.approx(1.0, abs=1e-5)  # shares are rounded to six digits
    assert found["unreadable"] == {"count": 0, "keys": []}
    assert {"duplicates", "shared_people", "shared_pictures"} <= set(found)


@pytest.mark.parametrize("name", sorted(set(PUBLISHED) - set(EMBEDDED)))
def test_broken_pictures_are_listed_and_strict_stops(name: str, written: Path, tmp_path: Path) -> None:
    root = tmp_path / "broken"
    shutil.copytree(written / name, root / name)
    whole = opened(name, root)
    other, torn = whole.keys[0], whole.keys[-1].partition("#")[0]
    assert other.partition("#")[0] != torn
    file_of(root / name, other).write_bytes(b"no picture")
    broken = file_of(root / name, torn)
    content = broken.read_bytes()
    broken.write_bytes(content[: len(content) // 2])

    corpus = opened(name, root)
    assert len(corpus) < len(whole)
    assert other not in corpus.keys
    assert any(reason.startswith("unreadable picture") for reason in corpus.skipped)
    with pytest.raises(DataError, match="picture"):
        opened(name, root, strict=True)
    if torn in {key.partition("#")[0] for key in corpus.keys}:  # its head tells a size: only decoding shows the fault
        assert torn in inspect(f"{name}@{SPLITS[name]}", root=root)["unreadable"]["keys"][-1]


def file_of(folder: Path, key: str) -> Path:
    """The picture of a key, whichever of the published folders it lies in."""
    found = [file for file in folder.rglob("*") if file.is_file() and str(file).endswith(key.partition("#")[0])]
    assert found, key
    return found[0]


def test_all_published_corpora_are_tried() -> None:
    assert set(SPLITS) == set(PUBLISHED)
    assert len(PUBLISHED) == 18


def test_weights_do_not_depend_on_the_terms(written: Path, tmp_path: Path) -> None:
    """Only provenance differs between two checkpoints of the same network."""
    one = saved(opened("mebeauty", written), tmp_path / "one")
    other = saved(replace(opened("mebeauty", written), research_only=False), tmp_path / "other")
    assert one.sha256 == other.sha256
    assert all(torch.equal(value, other.weights()[name]) for name, value in one.weights().items())
