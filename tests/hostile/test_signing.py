"""A signature holds for what was signed, by the key that signed it, and for nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fuzz.bundles import tiny_bundle
from edgeface.cli.main import main
from edgeface.errors import EdgefaceError, ModelError, UsageError
from targets import signing
from targets.runners import open_model
from targets.signing import MANIFEST, SIGNATURE, private_key, public_key, seal, verify

pytest.importorskip("cryptography", reason="cryptography is not installed (pip install 'edgeface[sign]')")


def _keys(folder: Path, name: str) -> tuple[Path, Path]:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    return _write_pair(folder, name, key)


def _write_pair(folder: Path, name: str, key: object, *, password: bytes = b"") -> tuple[Path, Path]:
    from cryptography.hazmat.primitives import serialization as form

    locked = form.BestAvailableEncryption(password) if password else form.NoEncryption()
    secret, public = folder / f"{name}.key", folder / f"{name}.pub"
    secret.write_bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, locked))  # type: ignore[attr-defined]
    public.write_bytes(
        key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    )
    return secret, public


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "android"
    folder.mkdir()
    for name, content in {**tiny_bundle(), "MODEL_CARD.md": b"card", "EdgeFace.kt": b"code"}.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return _keys(tmp_path, "own")


def _refused(folder: Path, public: Path) -> str:
    with pytest.raises(ModelError) as refused:
        verify(folder, key=public_key(public))
    return f"{Path(refused.value.where).name}: {refused.value.found}"


def test_a_signed_bundle_verifies_twin(bundle: Path, keys: tuple[Path, Path]) -> None:
    seal(bundle, key=private_key(keys[0]))
    assert len((bundle / SIGNATURE).read_bytes()) == signing.SIGNATURE_BYTES
    assert set(json.loads((bundle / MANIFEST).read_text())["beside"]) == {"MODEL_CARD.md", "EdgeFace.kt"}
    verify(bundle, key=public_key(keys[1]))


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["files"].update({"edge_s.w8a8.tflite": 0.5}),
        lambda manifest: manifest["files"].update({"edge_s.w8a8.tflite": ["x"]}),
        lambda manifest: manifest.update(golden=["golden.npz"]),
        lambda manifest: manifest["golden"].update(file=["golden.npz"]),
        lambda manifest: manifest.update(beside="MODEL_CARD.md"),
        lambda manifest: manifest["files"].update({"../x.tflite": {}}),
    ],
)
def test_a_signed_manifest_of_wrong_types_is_refused(
    bundle: Path, keys: tuple[Path, Path], change: Callable[[dict[str, Any]], None]
) -> None:
    """Found by fuzzing: whoever holds the key may sign anything, and verifying it ended with an AttributeError."""
    seal(bundle, key=private_key(keys[0]))
    manifest = json.loads((bundle / MANIFEST).read_text())
    change(manifest)
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    (bundle / SIGNATURE).write_bytes(private_key(keys[0]).sign((bundle / MANIFEST).read_bytes()))
    assert _refused(bundle, keys[1]).startswith(MANIFEST)


def test_a_copied_bundle_verifies_elsewhere(bundle: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    seal(bundle, key=private_key(keys[0]))
    verify(Path(shutil.copytree(bundle, tmp_path / "copy")), key=public_key(keys[1]))


@pytest.mark.parametrize("name", ["edge_s.w8a8.tflite", "golden.npz", "MODEL_CARD.md", "EdgeFace.kt", MANIFEST])
def test_one_changed_byte_in_any_file_is_noticed(bundle: Path, keys: tuple[Path, Path], name: str) -> None:
    seal(bundle, key=private_key(keys[0]))
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    found = _refused(bundle, keys[1])
    assert "the signature does not hold" in found if name == MANIFEST else found.startswith(name)


@pytest.mark.parametrize("name", ["edge_s.w8a8.tflite", "golden.npz", "MODEL_CARD.md"])
def test_a_missing_file_is_named(bundle: Path, keys: tuple[Path, Path], name: str) -> None:
    seal(bundle, key=private_key(keys[0]))
    (bundle / name).unlink()
    assert _refused(bundle, keys[1]) == f"{name}: is missing"


@pytest.mark.parametrize("name", ["More.kt", ".x", ".hidden.kt", ".scorecard.json.123.partial"])
def test_a_file_more_is_named(bundle: Path, keys: tuple[Path, Path], name: str) -> None:
    seal(bundle, key=private_key(keys[0]))
    (bundle / name).write_text("code")
    assert _refused(bundle, keys[1]) == f"{name}: a file that was not signed"


def test_a_hidden_folder_is_named(bundle: Path, keys: tuple[Path, Path]) -> None:
    seal(bundle, key=private_key(keys[0]))
    (bundle / ".git").mkdir()
    assert _refused(bundle, keys[1]) == ".git: a file that was not signed"


def test_a_hidden_file_that_was_there_is_signed_twin(bundle: Path, keys: tuple[Path, Path]) -> None:
    (bundle / ".swiftlint.yml").write_text("rules")
    (bundle / ".MODEL_CARD.md.123.partial").write_text("half a card, which its process takes away")
    seal(bundle, key=private_key(keys[0]))
    (bundle / ".MODEL_CARD.md.123.partial").unlink()
    verify(bundle, key=public_key(keys[1]))
    (bundle / ".swiftlint.yml").write_text("other rules")
    assert _refused(bundle, keys[1]) == ".swiftlint.yml: altered"


def test_a_manifest_changed_with_its_digests_is_noticed(bundle: Path, keys: tuple[Path, Path]) -> None:
    """Whoever alters a file and puts the manifest right still lacks the key."""
    seal(bundle, key=private_key(keys[0]))
    signature = (bundle / SIGNATURE).read_bytes()
    (bundle / "EdgeFace.kt").write_text("other code")
    seal(bundle)
    assert _refused(bundle, keys[1]) == "android: the bundle is not signed"
    (bundle / SIGNATURE).write_bytes(signature)
    assert "the signature does not hold" in _refused(bundle, keys[1])


def test_another_key_is_noticed(bundle: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    seal(bundle, key=private_key(keys[0]))
    assert "the signature does not hold" in _refused(bundle, _keys(tmp_path, "other")[1])


@pytest.mark.parametrize("content", [b"", b"x" * 63, b"x" * 65, b"x" * 64])
def test_a_signature_of_any_length_is_refused(bundle: Path, keys: tuple[Path, Path], content: bytes) -> None:
    seal(bundle, key=private_key(keys[0]))
    (bundle / SIGNATURE).write_bytes(content)
    assert "the signature does not hold" in _refused(bundle, keys[1])


def test_a_signed_manifest_cannot_name_files_elsewhere(bundle: Path, keys: tuple[Path, Path]) -> None:
    seal(bundle, key=private_key(keys[0]))
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["beside"]["../own.key"] = "0" * 64
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    (bundle / SIGNATURE).write_bytes(private_key(keys[0]).sign((bundle / MANIFEST).read_bytes()))
    assert "has no 'beside'" in _refused(bundle, keys[1])


def test_keys_that_cannot_be_used_say_why(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    curve = _write_pair(tmp_path, "curve", generate_private_key(SECP256R1()))
    locked = _write_pair(tmp_path, "locked", Ed25519PrivateKey.generate(), password=b"secret")
    junk = tmp_path / "junk"
    junk.write_bytes(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    for read, path, why in (
        (private_key, tmp_path / "none", "No such file"),
        (private_key, junk, "no private key"),
        (private_key, keys[1], "no private key"),
        (private_key, curve[0], "a key of kind"),
        (private_key, locked[0], "locked by a passphrase"),
        (public_key, keys[0], "a private key"),
        (public_key, tmp_path, "Is a directory"),
        (public_key, curve[1], "a key of kind"),
        (public_key, bundle_like(tmp_path), "no public key"),
    ):
        with pytest.raises(UsageError, match=why):
            read(path)


def bundle_like(folder: Path) -> Path:
    path = folder / "manifest.json"
    path.write_text("{}")
    return path


def test_open_model_and_check_refuse_before_they_run_anything(
    bundle: Path, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (bundle, bundle / "edge_s.w8a8.tflite"):
        with pytest.raises(ModelError, match="not signed"):
            open_model(path, verify_key=keys[1])
    assert main(["check", str(bundle), "--on", "host", "--verify-key", str(keys[1]), "--json"]) == 2
    assert "not signed" in json.loads(capsys.readouterr().out)["error"]["found"]
    seal(bundle, key=private_key(keys[0]))
    # Now the signature holds, and what fails is the file, which is no model.
    with pytest.raises(EdgefaceError) as refused:
        open_model(bundle, verify_key=keys[1])
    assert "sign" not in str(refused.value)


def test_build_refuses_a_bad_key_before_it_builds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["build", str(tmp_path), "--target", "android", "--sign", str(tmp_path / "none"), "--json"])
    assert code == 2
    assert json.loads(capsys.readouterr().out)["error"]["where"].startswith("--sign")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_makes_the_keys_and_verifies_alone(bundle: Path, tmp_path: Path) -> None:
    secret, public = tmp_path / "edgeface.key", tmp_path / "edgeface.pub"
    made = [
        ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(secret)],
        ["openssl", "pkey", "-in", str(secret), "-pubout", "-out", str(public)],
    ]
    for command in made:
        subprocess.run(command, check=True, capture_output=True)
    seal(bundle, key=private_key(secret))
    words = ["openssl", "pkeyutl", "-verify", "-rawin", "-in", MANIFEST, "-sigfile", SIGNATURE, "-pubin"]
    command = [*words, "-inkey", str(public)]
    assert subprocess.run(command, cwd=bundle, check=False, capture_output=True).returncode == 0
    (bundle / MANIFEST).write_bytes((bundle / MANIFEST).read_bytes() + b" ")
    assert subprocess.run(command, cwd=bundle, check=False, capture_output=True).returncode != 0
