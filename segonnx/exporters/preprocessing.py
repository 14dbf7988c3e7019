"""What a manifest says of the way from an image to the network's input, where its weights say nothing."""

from __future__ import annotations

from typing import Any

from segonnx.sources.catalog import ModelSpec

PREPROCESSING: dict[str, dict[str, Any]] = {
    "CT": {"modality": "CT", "note": "CT intensities, clipped and normalised as the network was trained"},
    "RGB": {
        "modality": "RGB",
        "note": "RGB scaled to 0..1, then normalised per channel with ImageNet's mean and standard deviation",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    },
    "other": {"modality": "other", "note": "as the network was trained"},
}
"""The entry ``preprocessing`` of a manifest by modality, where the spec says no more."""


def of(spec: ModelSpec) -> dict[str, Any]:
    """The entry ``preprocessing`` of a network's manifest.

    Where the spec says nothing, it is what is known by the modality alone; no mean and deviation of three colours for a
    network of other channels.
    """
    if "preprocessing" in spec.described:
        return dict(spec.described["preprocessing"])
    known = PREPROCESSING.get(spec.modality, PREPROCESSING["other"])
    if len(known.get("mean", ())) in (0, spec.input_shape[1]):
        return known
    return {"modality": spec.modality, "note": PREPROCESSING["other"]["note"]}
