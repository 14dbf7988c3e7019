"""Who made an artifact: a signature of all its files by the sender's key, in the format of OpenSSF's model-signing."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from segonnx.artifacts.layout import SIGNATURE
from segonnx.core import files
from segonnx.errors import InputError, VerifyError, first_line


def sign(artifact: Path, key: Path) -> Path:
    """Sign a verified artifact; an older signature is replaced.

    Args:
        artifact: the artifact's folder.
        key: a file with a private key of an elliptic curve (P-256, P-384 or P-521), in PEM.

    Returns:
        The signature's file.

    Raises:
        InputError: the key can't be used, or model-signing isn't installed.
    """
    signing = _library("signing")
    _require_file(key)
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=key)
    except (ValueError, TypeError) as error:
        raise InputError(f"{key} is no private key of an elliptic curve in PEM: {first_line(error)}") from error
    target = artifact / SIGNATURE
    with tempfile.TemporaryDirectory() as work:
        made = Path(work) / SIGNATURE
        config.set_hashing_config(_hashing()).sign(artifact, made)
        files.write(target, made.read_bytes())
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
    verifying = _library("verifying")
    _require_file(key)
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=key)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{key} is no public key of an elliptic curve in PEM: {first_line(error)}") from error
    path = artifact / SIGNATURE
    if path.is_symlink() or not path.is_file():
        raise VerifyError(f"{artifact} isn't signed: it has no {SIGNATURE}")
    try:
        config.set_hashing_config(_hashing()).verify(artifact, path)
    except Exception as error:  # the file is a stranger's, and the library says by many classes that it is wrong
        raise VerifyError(f"{artifact} isn't as the owner of {key} signed it: {first_line(error)}") from error


def _hashing() -> Any:
    hashing = _library("hashing")
    return hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _library(part: str) -> ModuleType:
    try:
        return importlib.import_module(f"model_signing.{part}")
    except ImportError as error:
        raise InputError(f"signatures need model-signing ({error}): pip install 'segonnx[sign]'") from error


def _require_file(key: Path) -> None:
    if not key.is_file():
        raise InputError(f"{key} is not a file")
