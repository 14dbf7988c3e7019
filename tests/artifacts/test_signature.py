"""What was signed and changed since is found; so is what somebody else signed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from segonnx.artifacts import layout, manifest, packing
from segonnx.artifacts.verify import verify
from segonnx.core.files import sha256
from segonnx.errors import InputError, VerifyError
from tests.conftest import run

pytest.importorskip("model_signing", reason="model-signing isn't installed: pip install 'segonnx[sign]'")
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from segonnx.artifacts import signature


def _key(folder: Path, name: str) -> tuple[Path, Path]:
    """A new private key and its public one."""
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return _key(tmp_path, "sender")


@pytest.fixture
def signed(artifact: Path, keys: tuple[Path, Path]) -> Path:
    signature.sign(artifact, keys[0])
    return artifact


def test_a_signed_artifact_is_its_sender_s(artifact: Path, keys: tuple[Path, Path]) -> None:
    done = run("sign", artifact, "--key", keys[0])
    assert done.returncode == 0, done.stderr
    done = run("verify", artifact, "--key", keys[1])
    assert done.returncode == 0, done.stderr
    assert "signed by the owner of" in done.stdout
    assert run("verify", artifact).returncode == 0


def test_another_key_and_no_signature_are_found(artifact: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    done = run("verify", artifact, "--key", keys[1])
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "isn't signed" in done.stderr
    signature.sign(artifact, keys[0])
    done = run("verify", artifact, "--key", _key(tmp_path, "other")[1])
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "isn't as the owner of" in done.stderr


@pytest.mark.parametrize("name", ["README.md", "data.json", "model.onnx", "test_data_set_0/output_0.pb"])
def test_a_change_after_signing_is_found_whatever_the_hashes_say(
    name: str, signed: Path, keys: tuple[Path, Path]
) -> None:
    path = signed / name
    path.write_bytes(path.read_bytes() + b"\n")
    content = json.loads((signed / layout.MANIFEST).read_bytes())
    content["files"][name] = {"sha256": sha256(path), "bytes": path.stat().st_size}
    (signed / layout.MANIFEST).write_bytes(manifest.seal(content))
    with pytest.raises(VerifyError, match="isn't as the owner of"):
        verify(signed, key=keys[1], replay=False)


def test_a_manifest_that_was_resealed_is_found(signed: Path, keys: tuple[Path, Path]) -> None:
    content = json.loads((signed / layout.MANIFEST).read_bytes())
    content["weights"]["licence"] = "mine"
    (signed / layout.MANIFEST).write_bytes(manifest.seal(content))
    verify(signed, replay=False)
    with pytest.raises(VerifyError, match="isn't as the owner of"):
        verify(signed, key=keys[1], replay=False)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[" * 10_000, b'{"mediaType": 1}'])
def test_a_signature_that_is_none_is_refused(data: bytes, signed: Path, keys: tuple[Path, Path]) -> None:
    (signed / layout.SIGNATURE).write_bytes(data)
    with pytest.raises(VerifyError, match="isn't as the owner of"):
        verify(signed, key=keys[1], replay=False)


def test_foreign_files_are_found_beside_a_signature(signed: Path, keys: tuple[Path, Path]) -> None:
    for name in ("model.sig.bak", ".gitignore", "MODEL.SIG"):
        (signed / name).write_text("x")
        with pytest.raises(VerifyError, match="the manifest doesn't know"):
            verify(signed, key=keys[1], replay=False)
        (signed / name).unlink()


def test_a_key_that_is_none_is_bad_input(artifact: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no key")
    for key in (tmp_path / "text", tmp_path / "none", keys[1]):
        with pytest.raises(InputError):
            signature.sign(artifact, key)
    for key in (tmp_path / "text", tmp_path / "none"):
        with pytest.raises(InputError):
            signature.check(artifact, key)
    assert not (artifact / layout.SIGNATURE).exists()


@pytest.mark.parametrize("form", ["zip", "oci"])
def test_a_signature_travels_along(form: str, signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    packed = packing.pack(signed, form, tmp_path / "packed")
    verify(packing.unpack(packed, tmp_path / "out"), key=keys[1], replay=False)
