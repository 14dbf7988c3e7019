from __future__ import annotations

import numpy as np
import pytest

from segonnx.core import tolerances
from segonnx.core.tolerances import TOLERANCES, compare, compare_labels, compare_values, labels_of, size_of
from segonnx.errors import ParityError

RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((2, 5, 7, 8, 9)).astype(np.float32)


def test_the_figures_are_those_of_their_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tolerances, "CHUNK", 1000)  # several chunks
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


def test_labels_are_the_first_of_the_largest_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tolerances, "CHUNK", 1000)
    logits = np.round(LOGITS)  # many tie
    assert labels_of(logits).dtype == np.uint8
    assert np.array_equal(labels_of(logits), logits.argmax(axis=1))
    many = RNG.standard_normal((1, 300, 4, 4)).astype(np.float32)
    assert labels_of(many).dtype == np.uint16
    assert np.array_equal(labels_of(many), many.argmax(axis=1))


def test_the_labels_of_one_class_are_what_is_above_zero() -> None:
    one = LOGITS[:, :1]
    assert np.array_equal(labels_of(one), one[:, 0] > 0)
    assert compare(one, -one).label_agreement == 0
    assert compare(one, one).label_agreement == 1


def test_labels_that_agree_too_rarely_are_not_within() -> None:
    labels = labels_of(LOGITS)
    assert compare_labels(labels, labels).within(TOLERANCES["float32"])
    other = labels.copy()
    other[0, 0, 0, :2] += 1
    agreement = compare_labels(labels, other)
    assert agreement.label_agreement == pytest.approx(1 - 2 / labels.size)
    assert not agreement.within(TOLERANCES["float32"])
    for wrong in (labels[:1], labels.astype(np.int64)):
        with pytest.raises(ParityError, match="labels are"):
            compare_labels(labels, wrong)


def test_a_number_that_is_nearly_nothing_here_is_measured_by_what_it_is_elsewhere() -> None:
    """The mean of numbers that cancel keeps the error of what was added."""
    here, found = np.array([1e-6], np.float32), np.array([2e-6], np.float32)
    alone, known = compare_values(here, found), compare_values(here, found, size_of(np.ones(3, np.float32)))
    assert alone is not None and known is not None
    assert not alone.within(TOLERANCES["float32"])
    assert known.within(TOLERANCES["float32"])
    assert size_of(np.array([3, 4], np.float32)) == pytest.approx(12.5**0.5)
    assert size_of(np.zeros(0, np.float32)) == size_of(np.ones(2, np.int64)) == 0
