"""Signed bundles: an ed25519 signature over manifest.json, which names every file's sha256, tells who built them.

The signature is detached and raw, 64 bytes in `manifest.sig`, so openssl alone verifies it too:

    openssl genpkey -algorithm ed25519 -out edgeface.key
    openssl pkey -in edgeface.key -pubout -out edgeface.pub
    openssl pkeyutl -verify -rawin -in manifest.json -sigfile manifest.sig -pubin -inkey edgeface.pub

Keys are PEM files as openssl writes them. This is the one module that imports `cryptography`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgeface import limits
from edgeface.errors import MissingToolError, ModelError, UsageError
from edgeface.files import is_aside, is_plain_name, read_json, read_limited, sha256_file, write_bytes, write_json
from targets import artifacts

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
BESIDE = "beside"  # the manifest's entry for every file that is neither a model nor golden
SIGNATURE_BYTES = 64


def private_key(path: Path) -> Ed25519PrivateKey:
    """The key to sign with.

    Raises:
        UsageError: It cannot be read, is another kind of key, or is locked by a passphrase.
        MissingToolError: `cryptography` is not installed.
    """
    where, do = f"--sign {path}", "Make one: openssl genpkey -algorithm ed25519 -out edgeface.key"
    serialization, ed25519 = _cryptography()
    content = _key_file(path, where=where, do=do)
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except TypeError:
        raise UsageError(
            "a key locked by a passphrase",
            expected="an ed25519 private key in PEM, unlocked",
            where=where,
            do=f"Sign with openssl instead: openssl pkeyutl -sign -rawin -in {MANIFEST} -inkey {path} -out {SIGNATURE}",
        ) from None
    except Exception:  # of OpenSSL, which names each fault by a class of its own
        raise UsageError("no private key", expected="an ed25519 private key in PEM", where=where, do=do) from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise UsageError(f"a key of kind {type(key).__name__!r}", expected="ed25519", where=where, do=do)
    return cast("Ed25519PrivateKey", key)


def public_key(path: Path) -> Ed25519PublicKey:
    """The key to verify with.

    Raises:
        UsageError: It cannot be read, or is another kind of key.
        MissingToolError: `cryptography` is not installed.
    """
    where = f"--verify-key {path}"
    do = "Take it from who signed: openssl pkey -in edgeface.key -pubout -out edgeface.pub"
    serialization, ed25519 = _cryptography()
    content = _key_file(path, where=where, do=do)
    if b"PRIVATE KEY" in content:
        raise UsageError("a private key", expected="the public key that belongs to it", where=where, do=do)
    try:
        key = serialization.load_pem_public_key(content)
    except Exception:  # as above
        raise UsageError("no public key", expected="an ed25519 public key in PEM", where=where, do=do) from None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise UsageError(f"a key of kind {type(key).__name__!r}", expected="ed25519", where=where, do=do)
    return cast("Ed25519PublicKey", key)


def seal(folder: Path, *, key: Ed25519PrivateKey | None = None) -> None:
    """Have a finished bundle's manifest name every file, hidden ones too, and sign it.

    Args:
        folder: The bundle, with everything in it.
        key: What to sign with; None leaves it unsigned, and takes away a signature that no longer holds.

    Raises:
        OutputError: The folder cannot be written.
    """
    path = folder / MANIFEST
    manifest = read_json(path)
    known = _named(manifest)
    manifest[BESIDE] = {
        file.name: sha256_file(file)
        for file in sorted(folder.iterdir())
        if file.is_file() and file.name not in (*known, MANIFEST, SIGNATURE) and not is_aside(file.name)
    }
    (folder / SIGNATURE).unlink(missing_ok=True)  # first, so that it never stands beside a manifest it is not of
    write_json(path, manifest)
    if key is not None:
        write_bytes(folder / SIGNATURE, key.sign(path.read_bytes()))


def verify(folder: Path, *, key: Ed25519PublicKey) -> None:
    """See that a bundle is, file by file, what the holder of a key signed.

    Raises:
        ModelError: There is no signature, it is of another key or another manifest, or a file is missing, altered or
            not named by the signed manifest.
    """
    from cryptography.exceptions import InvalidSignature

    path = folder / SIGNATURE
    content = _read(folder / MANIFEST, limit=limits.MANIFEST_BYTES, what="a signed manifest")
    if not path.exists():
        raise ModelError(
            "the bundle is not signed",
            expected=f"{SIGNATURE}, since a key to verify with was given",
            where=str(folder),
            do="Ask whoever built it for a signed one (edgeface build --sign KEY), or leave the key out",
        )
    signature = _read(path, limit=limits.KEY_BYTES, what="a signature")
    try:
        key.verify(signature, content)
    except InvalidSignature:
        size = "" if len(signature) == SIGNATURE_BYTES else f" ({len(signature):,} bytes, not {SIGNATURE_BYTES})"
        raise ModelError(
            f"the signature does not hold{size}",
            expected=f"{SIGNATURE} made with the other half of this key over this very {MANIFEST}",
            where=str(folder),
            do=f"{MANIFEST} or its signature was altered, or another key signed it: do not use the bundle",
        ) from None
    # What was verified is what is parsed: the file may change between two readings.
    _check_files(folder, _parsed(content, where=folder / MANIFEST))


def _check_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    known = _named(manifest)
    beside: Any = manifest.get(BESIDE)
    golden: Any = manifest.get("golden", {})
    dicts = (beside, golden, *manifest["files"].values())
    whole = all(isinstance(each, dict) for each in dicts) and isinstance(golden.get("file", ""), str)
    if not whole or not all(map(is_plain_name, (*beside, *known))):
        raise ModelError(
            f"the manifest has no {BESIDE!r}",
            expected="the sha256 of every file",
            where=str(folder / MANIFEST),
            do="Build it with this version of edgeface",
        )
    for name, entry in manifest["files"].items():
        artifacts.check(folder / name, entry)
    for name, digest in {**beside, golden.get("file", ""): golden.get("sha256")}.items():
        path = folder / name
        if not path.is_file() or sha256_file(path) != digest:
            raise ModelError(
                "altered" if path.exists() else "is missing",
                expected="the file as it was signed",
                where=str(path),
                do="Copy the bundle again; files that were measured anew need a new signature",
            )
    signed = {*beside, *known, MANIFEST, SIGNATURE}
    for path in sorted(folder.iterdir()):
        if path.name not in signed:  # hidden ones too, and what a killed process left
            raise ModelError(
                "a file that was not signed",
                expected=f"only what the signed {MANIFEST} names",
                where=str(path),
                do="Move it out of the bundle",
            )


def _named(manifest: Mapping[str, Any]) -> list[str]:
    """Files that the manifest names elsewhere than in BESIDE: the models with their parts, and the golden faces."""
    files, golden = manifest.get("files"), manifest.get("golden")
    faces = golden.get("file") if isinstance(golden, dict) else None
    names = [faces] if isinstance(faces, str) else []
    for name, entry in files.items() if isinstance(files, dict) else ():
        names.append(name)
        parts = entry.get("parts") if isinstance(entry, dict) else None
        names += [part.split("/")[0] for part in parts] if isinstance(parts, dict) else []
    return list(dict.fromkeys(names))


def _parsed(content: bytes, *, where: Path) -> Mapping[str, Any]:
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"not JSON ({error})", expected="a manifest", where=str(where)) from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ModelError("not a bundle's manifest", expected="one that lists files", where=str(where))
    return manifest


def _read(path: Path, *, limit: int, what: str) -> bytes:
    try:
        return read_limited(path, limit=limit)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot be read ({error})", expected=what, where=str(path), do="Name a bundle") from None


def _key_file(path: Path, *, where: str, do: str) -> bytes:
    try:
        return read_limited(path, limit=limits.KEY_BYTES)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(f"cannot be read ({reason})", expected="a key in PEM", where=where, do=do) from None


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingToolError(
            f"cryptography cannot be imported ({error})",
            expected="it, to sign and verify bundles",
            where="--sign or --verify-key",
            do="pip install 'edgeface[sign]'",
        ) from error
    return serialization, ed25519
