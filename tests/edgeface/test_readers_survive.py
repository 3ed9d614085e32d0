"""Whatever stands in a corpus's label files, its reader raises a DataError or lists the face."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgeface.data.sources import open_source
from edgeface.errors import DataError

# Source to the label files whose content is replaced.
FILES = {
    "lsafbd@train": ["train.txt"],
    "scut_fbp5500@train": ["train_test_files/split_of_60%training and 40%testing/train.txt"],
    "utkface@train": ["landmark_list_part2.txt"],
    "fer2013@train": ["fer2013.csv"],
    "rafdb@train": ["basic/EmoLabel/list_patition_label.txt", "basic/Annotation/manual/train_00001_manu_attri.txt"],
    "celeba@train": [
        "Anno/list_attr_celeba.txt",
        "Anno/list_landmarks_align_celeba.txt",
        "Anno/identity_CelebA.txt",
        "Eval/list_eval_partition.txt",
    ],
    "aflw@train": ["data/aflw.sqlite"],
    "w300@full": ["ibug/image_092 _01.pts"],
    "wflw@test": ["WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_train.txt"],
    "lfw@pairs": ["pairs.txt"],
    "ckplus@fold1-test": [
        "Emotion/S005/001/S005_001_00000005_emotion.txt",
        "Landmarks/S005/001/S005_001_00000005_landmarks.txt",
    ],
}
CASES = [(source, file) for source, files in FILES.items() for file in files]


def writers(name: str) -> ModuleType:
    """The test file that writes a corpus in its published form."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    beauty, people = writers("test_beauty_readers"), writers("test_people_readers")
    expression, landmark = writers("test_expression_readers"), writers("test_landmark_readers")
    for write in (beauty.write_lsafbd, beauty.write_scut, people.write_utkface, people.write_celeba, people.write_lfw):
        write(folder)
    for write in (expression.write_fer2013, expression.write_rafdb, expression.write_ckplus):
        write(folder)
    for write in (landmark.write_w300, landmark.write_wflw, landmark.write_aflw):
        write(folder)
    return folder


def content() -> st.SearchStrategy[bytes]:
    word = st.one_of(
        st.integers(-(10**20), 10**20).map(str),
        st.floats().map(str),
        st.sampled_from(
            ["a.jpg", "../a.jpg", "train_00001.jpg", "000001.jpg", "{", "}", "NaN", "1" * 5000, "٣", "-1", "0"]
        ),
        st.text(max_size=9),
    )
    lines = st.lists(st.lists(word, max_size=12).map(" ".join), max_size=6).map("\n".join)
    return st.one_of(lines.map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary(max_size=200))


@pytest.mark.parametrize(("source", "file"), CASES, ids=lambda value: Path(str(value)).name)
@settings(max_examples=40)
@given(found=content())
@example(found=b"")
@example(found=b"1" * 5000)
@example(found=("12 " * 13).encode())
def test_any_content_gives_faces_or_a_data_error(root: Path, source: str, file: str, found: bytes) -> None:
    path = root / source.partition("@")[0] / file
    kept = path.with_name(path.name + ".kept")
    if path.exists():
        shutil.move(path, kept)
    try:
        path.write_bytes(found)
        with contextlib.suppress(DataError):
            assert len(open_source(source, root=root)) > 0
    finally:
        path.unlink()
        if kept.exists():
            shutil.move(kept, path)


@pytest.mark.parametrize("source", FILES)
def test_untouched_they_are_read(root: Path, source: str) -> None:
    assert len(open_source(source, root=root, strict=True)) > 0
