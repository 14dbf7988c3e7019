"""Postprocessing of label maps as nnU-Net determines it: of some labels together, the largest component is kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segonnx.predict.resampling import AnyArray, nonzero


def apply(labels: AnyArray, steps: Sequence[Sequence[int]]) -> AnyArray:
    """Apply the steps of a postprocessing, one after another.

    Args:
        labels: The label map, integers (z, y, x). It stays as it is.
        steps: For each step, the labels whose largest component is kept: one label, those of a region, or all.

    Returns:
        The label map after the last step.
    """
    for step in steps:
        labels = keep_largest_component(labels, step)
    return labels


def keep_largest_component(labels: AnyArray, values: Sequence[int]) -> AnyArray:
    """Keep the largest connected component of the voxels that have one of these labels. The others become 0.

    Voxels that share a face, an edge or a corner are connected, as in nnU-Net. Of components that are equally large,
    all are kept.

    Args:
        labels: The label map, integers (z, y, x). It stays as it is.
        values: The labels, which count as one.

    Returns:
        A new label map.
    """
    from scipy.ndimage import label

    result = labels.copy()
    mask = np.isin(labels, values)
    _, box = nonzero(mask[None])
    components, count = label(mask[box], structure=np.ones((3, 3, 3), bool))
    if count > 1:
        sizes = np.bincount(components.ravel())
        removed = sizes < sizes[1:].max()
        removed[0] = False
        result[box][removed[components]] = 0
    return result
