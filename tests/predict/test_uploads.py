"""Uploads are decoded by a process that sees no other file, whatever a library makes of them."""

from __future__ import annotations

import gzip
import os
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import imageio.v3
import numpy as np
import pytest

from segonnx.core import confinement
from segonnx.core.subprocesses import Progress
from segonnx.errors import InputError, StageError
from segonnx.predict import headers, images, uploads
from segonnx.predict.images import Image
from segonnx.predict.readers import READERS
from tests.predict.conftest import save, volume
from tests.predict.test_headers import ascii_nifti


@pytest.mark.parametrize("reader", list(READERS))
def test_what_is_decoded_is_what_is_read(reader: str, tmp_path: Path) -> None:
    ending = {"NaturalImage2DIO": ".png", "Tiff3DIO": ".tif"}.get(reader, ".nii.gz")
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / f"a{ending}"
    if ending == ".png":
        imageio.v3.imwrite(path, np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8))
    else:
        save(volume(), path)
    wanted = images.read([path], reader)
    found = uploads.decode([path], reader, 10**6, timeout=60)
    np.testing.assert_array_equal(found.array, wanted.array)
    assert found.array.dtype == wanted.array.dtype
    assert (found.spacing, found.reader) == (wanted.spacing, reader)
    images.write(np.zeros(found.array.shape[1:], np.uint8), found, tmp_path / f"o{ending}")
    assert len(os.listdir(tmp_path / "in")) == 1


@pytest.mark.skipif(not confinement.possible(), reason="this system has no Landlock (Linux 5.13)")
def test_a_file_that_misleads_the_library_reads_no_other_one(tmp_path: Path) -> None:
    """The look at the header is left out: what nobody has thought of yet would pass it, too."""
    secret = tmp_path / "secret.nia"
    secret.write_bytes(bytes(range(256)) * 12)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.nii").write_bytes(ascii_nifti(secret))
    with mock.patch.object(headers, "require_whole"):
        assert images.read([tmp_path / "in" / "a.nii"], "SimpleITKIO").array.max() == 255  # here it is read
    with mock.patch.object(uploads, "_decode", _without_a_look), pytest.raises(InputError, match="can't be read"):
        uploads.decode([tmp_path / "in" / "a.nii"], "SimpleITKIO", 10**6, timeout=60)


_real = uploads._decode


def _without_a_look(paths: tuple[Path, ...], reader: str, most: int, progress: Progress) -> Image:
    with mock.patch.object(headers, "require_whole"):
        return _real(paths, reader, most, progress)


def _endless(paths: tuple[Path, ...], *_: object) -> Image:
    while paths:
        time.sleep(0.1)
    raise AssertionError


def _greedy(paths: tuple[Path, ...], reader: str, most: int, progress: Progress) -> Image:
    with mock.patch.object(headers, "require_whole", side_effect=lambda _: np.ones(2**33)):
        return _real(paths, reader, most, progress)


@pytest.mark.parametrize(("act", "error"), [(_endless, StageError), (_greedy, InputError)])
def test_decoding_has_bounds(act: Callable[..., Image], error: type[Exception], tmp_path: Path) -> None:
    save(volume(), tmp_path / "a.nii")
    with mock.patch.object(uploads, "_decode", act), pytest.raises(error, match="took more than|memory"):
        uploads.decode([tmp_path / "a.nii"], "SimpleITKIO", 10**6, timeout=5)


def test_a_bomb_is_unpacked_no_further_than_its_bound(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(10**8)))
    with pytest.raises(uploads.TooLargeError, match="at most 1000 voxels"):
        uploads.decode([tmp_path / "a.nii.gz"], "SimpleITKIO", 1000, timeout=60)
    assert (tmp_path / "a.nii").stat().st_size <= 2**20
