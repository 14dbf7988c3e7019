from __future__ import annotations

import numpy as np
import pytest

from segonnx import numeric
from segonnx.errors import ParityError
from segonnx.numeric import TOLERANCES, compare

RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((2, 5, 7, 8, 9)).astype(np.float32)


def test_the_figures_are_those_of_their_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numeric, "CHUNK", 1000)  # several chunks
    noise = 0.1 * RNG.standard_normal(LOGITS.shape).astype(np.float32)
    found = LOGITS + noise
    difference = compare(LOGITS, found)
    spread = LOGITS.astype(np.float64).std()
    delta = found.astype(np.float64) - LOGITS.astype(np.float64)
    assert difference.spread == pytest.approx(spread)
    assert difference.max_abs_error == pytest.approx(np.abs(delta).max())
    assert difference.max_rel_error == pytest.approx(np.abs(delta).max() / spread)
    assert difference.rms_rel_error == pytest.approx(np.sqrt((delta**2).mean()) / spread)
    assert difference.label_agreement == pytest.approx((LOGITS.argmax(1) == found.argmax(1)).mean())
    assert 0 < difference.label_agreement < 1


def test_equal_logits_are_within_every_tolerance() -> None:
    for tolerance in TOLERANCES.values():
        assert compare(LOGITS, LOGITS).within(tolerance)


def test_errors_are_relative_to_the_spread() -> None:
    found = LOGITS + np.float32(1e-3)
    large = compare(1e6 * LOGITS.astype(np.float64), 1e6 * found.astype(np.float64))
    assert large.max_rel_error == pytest.approx(compare(LOGITS, found).max_rel_error, rel=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_value_that_is_no_number_fails(value: float) -> None:
    found = LOGITS.copy()
    found[1, 2, 3, 4, 5] = value
    for tolerance in TOLERANCES.values():
        assert not compare(LOGITS, found).within(tolerance)


def test_one_wrong_voxel_fails() -> None:
    found = LOGITS.copy()
    found[0, 0, 0, 0, 0] += 0.01
    assert not compare(LOGITS, found).within(TOLERANCES["float32"])


def test_another_shape_fails() -> None:
    with pytest.raises(ParityError, match="shape"):
        compare(LOGITS, LOGITS[:1])
