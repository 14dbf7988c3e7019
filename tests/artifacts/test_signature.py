"""What was signed and changed since is found; so is what somebody else signed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from segonnx.artifacts import layout, manifest, packing
from segonnx.artifacts.verify import verify
from segonnx.core.files import sha256
from segonnx.errors import InputError, ResourceError, VerifyError
from tests import signing_keys
from tests.conftest import message, run

pytest.importorskip("model_signing", reason="model-signing isn't installed: pip install 'segonnx[sign]'")
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519

from segonnx.artifacts import signature

pytestmark = pytest.mark.usefixtures("copied_workers")


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return signing_keys.make(tmp_path, "sender")


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
    done = run("verify", artifact, "--key", signing_keys.make(tmp_path, "other")[1])
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


def _pem(key: object, *, password: bytes | None = None) -> tuple[bytes, bytes]:
    """A private key in PEM, and its public one."""
    protected = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    made = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protected)  # type: ignore[attr-defined]
    public = key.public_key().public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return made, public


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_the_keys_of_model_signing_are_taken(curve: ec.EllipticCurve, artifact: Path, tmp_path: Path) -> None:
    private, public = _pem(ec.generate_private_key(curve))
    (tmp_path / "key").write_bytes(private)
    (tmp_path / "pub").write_bytes(public)
    assert run("sign", artifact, "--key", tmp_path / "key").returncode == 0
    verify(artifact, key=tmp_path / "pub", replay=False)


OTHERS = {
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "DSA": lambda: dsa.generate_private_key(2048),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "Ed448": ed448.Ed448PrivateKey.generate,
    "X25519": x25519.X25519PrivateKey.generate,
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    "brainpool": lambda: ec.generate_private_key(ec.BrainpoolP256R1()),
    "secp224r1": lambda: ec.generate_private_key(ec.SECP224R1()),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_keys_of_other_kinds_are_refused_in_one_line(kind: str, signed: Path, tmp_path: Path) -> None:
    private, public = _pem(OTHERS[kind]())
    (tmp_path / "key").write_bytes(private)
    (tmp_path / "pub").write_bytes(public)
    before = (signed / layout.SIGNATURE).read_bytes()
    for done in (run("sign", signed, "--key", tmp_path / "key"), run("verify", signed, "--key", tmp_path / "pub")):
        assert (done.returncode, message(done).count("\n")) == (2, 0), done.stderr
        assert "of another kind" in done.stderr and "P-256, P-384, P-521" in done.stderr
    assert (signed / layout.SIGNATURE).read_bytes() == before


def test_files_that_hold_no_key_are_refused_in_one_line(artifact: Path, tmp_path: Path) -> None:
    private, public = _pem(ec.generate_private_key(ec.SECP256R1()), password=b"secret")
    kinds = {"protected": private, "public": public, "binary": bytes(range(256)), "large": b"x" * 100_000, "empty": b""}
    for name, data in kinds.items():
        (tmp_path / name).write_bytes(data)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in (*kinds, "pipe", "zeros", "."):
        done = run("sign", artifact, "--key", tmp_path / name)
        assert (done.returncode, message(done).count("\n")) == (2, 0), done.stderr
    assert not (artifact / layout.SIGNATURE).exists()


def test_a_signature_that_does_not_hold_is_not_put_in_place(
    signed: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (signed / layout.SIGNATURE).read_bytes()

    def fail(*_: object) -> None:
        raise ValueError("it doesn't hold")

    monkeypatch.setattr(signature, "_check", fail)
    with pytest.raises(ResourceError, match="can't be signed: it doesn't hold"):
        signature.sign(signed, keys[0])
    assert (signed / layout.SIGNATURE).read_bytes() == before
