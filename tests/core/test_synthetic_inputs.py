from __future__ import annotations

import numpy as np
import pytest

from segonnx.core import synthetic_inputs

VOLUME, IMAGE = (1, 1, 32, 48, 64), (2, 3, 64, 64)


@pytest.mark.parametrize("name", synthetic_inputs.NAMES)
@pytest.mark.parametrize(("shape", "modality"), [(VOLUME, "CT"), (IMAGE, "RGB")])
def test_inputs_have_their_shape_and_are_the_same_each_time(name: str, shape: tuple[int, ...], modality: str) -> None:
    x = synthetic_inputs.make(name, shape, modality)
    assert x.shape == shape
    assert x.dtype == np.float32
    assert np.isfinite(x).all()
    assert synthetic_inputs.sha256(x) == synthetic_inputs.sha256(synthetic_inputs.make(name, shape, modality))


def test_the_phantom_is_normalised_as_nnunet_does() -> None:
    x = synthetic_inputs.phantom((1, 1, 64, 128, 128), "CT")
    air = x.min()
    inside = x[x > air]
    assert abs(inside.mean()) < 0.1
    assert inside.std() == pytest.approx(1, abs=0.1)
    assert (x == air).mean() > 0.2  # air around the trunk, clipped to one value


def test_seeds_give_other_noise() -> None:
    assert synthetic_inputs.sha256(synthetic_inputs.make("noise", IMAGE, "RGB", 0)) != synthetic_inputs.sha256(
        synthetic_inputs.make("noise", IMAGE, "RGB", 1)
    )


def test_the_hash_is_of_the_values_in_c_order() -> None:
    x = synthetic_inputs.make("noise", IMAGE, "RGB")
    assert synthetic_inputs.sha256(np.asfortranarray(x)) == synthetic_inputs.sha256(x)
