"""Who made an artifact: a signature of all its files by the sender's key, in the format of OpenSSF's model-signing."""

from __future__ import annotations

import contextlib
import importlib
import io
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from segonnx.artifacts import manifest
from segonnx.artifacts.layout import SIGNATURE
from segonnx.core import files
from segonnx.errors import InputError, ResourceError, SegonnxError, VerifyError, first_line

CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
"""The curves of the keys that model-signing takes: their names there, and as people know them."""
MAX_KEY_BYTES = 2**16
"""The most bytes of a key's file."""


def sign(artifact: Path, key: Path) -> Path:
    """Sign a verified artifact; an older signature is replaced. The signature is checked before it is put in place.

    Args:
        artifact: the artifact's folder.
        key: a file with a private key of an elliptic curve (P-256, P-384 or P-521), in PEM, without a password.

    Returns:
        The signature's file.

    Raises:
        InputError: the key can't be used, or model-signing isn't installed.
        ResourceError: the signature can't be written.
    """
    signing = _library("signing")
    public = _public_of(key)
    target = artifact / SIGNATURE
    try:
        with tempfile.TemporaryDirectory() as work:
            made, receiver = Path(work) / SIGNATURE, Path(work) / "public"
            receiver.write_bytes(public)
            config = signing.Config().use_elliptic_key_signer(private_key=key)
            config.set_hashing_config(_hashing()).sign(artifact, made)
            _check(artifact, made, receiver)
            files.write(target, files.read(made, manifest.MAX_BYTES))
    except SegonnxError:
        raise
    except OSError as error:
        raise ResourceError(f"can't write {target}: {error.strerror}") from error
    except Exception as error:  # the library's classes are many
        raise ResourceError(f"{artifact} can't be signed: {first_line(error)}") from error
    return target


def check(artifact: Path, key: Path) -> None:
    """See to it that the artifact is as the owner of the key signed it.

    Args:
        artifact: the artifact's folder, without links.
        key: a file with the public key, in PEM.

    Raises:
        VerifyError: there is no signature, it is another's, or a file was changed since.
        InputError: the key can't be used, or model-signing isn't installed.
    """
    _library("verifying")
    _public_key(key)
    path = artifact / SIGNATURE
    if path.is_symlink() or not path.is_file():
        raise VerifyError(f"{artifact} isn't signed: it has no {SIGNATURE}")
    try:
        _check(artifact, path, key)
    except Exception as error:  # the file is a stranger's, and the library says by many classes that it is wrong
        raise VerifyError(f"{artifact} isn't as the owner of {key} signed it: {first_line(error)}") from error


def _check(artifact: Path, path: Path, key: Path) -> None:
    """Check a signature; the library's own errors say what is wrong."""
    config = _library("verifying").Config().use_elliptic_key_verifier(public_key=key)
    with contextlib.redirect_stdout(io.StringIO()):  # where the library remarks on signatures of older kinds
        config.set_hashing_config(_hashing()).verify(artifact, path)


def _public_of(path: Path) -> bytes:
    """The public key, in PEM, that goes with the private key in a file.

    Raises:
        InputError: it is none that model-signing takes.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_private_key(_key_bytes(path), None)
    except InputError:
        raise
    except Exception as error:  # the library's classes are many, some of them Rust's
        raise InputError(f"{path} is no private key in PEM without a password: {first_line(error)}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _other_key(path, type(key).__name__)
    _require_curve(path, key.curve.name)
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(encoding, form)


def _public_key(path: Path) -> None:
    """Check that a file holds a public key that model-signing takes.

    Raises:
        InputError: it doesn't.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_public_key(_key_bytes(path))
    except InputError:
        raise
    except Exception as error:  # the library's classes are many, some of them Rust's
        raise InputError(f"{path} is no public key in PEM: {first_line(error)}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise _other_key(path, type(key).__name__)
    _require_curve(path, key.curve.name)


def _key_bytes(path: Path) -> bytes:
    try:
        return files.read(path, MAX_KEY_BYTES)
    except OSError as error:
        raise InputError(f"{path} can't be read as a key: {error.strerror}") from error


def _require_curve(path: Path, curve: str) -> None:
    if curve not in CURVES:
        raise _other_key(path, curve)


def _other_key(path: Path, kind: str) -> InputError:
    return InputError(f"{path} is a key of another kind ({kind}): signatures take {', '.join(CURVES.values())}")


def _hashing() -> Any:
    hashing = _library("hashing")
    return hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _library(part: str) -> ModuleType:
    try:
        return importlib.import_module(f"model_signing.{part}")
    except ImportError as error:
        raise InputError(f"signatures need model-signing ({error}): pip install 'segonnx[sign]'") from error
