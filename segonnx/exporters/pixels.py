"""Graphs that take pictures of 8 bits, and prepare them: which networks can, and what their manifests say of it."""

from __future__ import annotations

from dataclasses import replace

from segonnx.core.pixels import Layout, Pixels
from segonnx.errors import InputError
from segonnx.exporters import naming, preprocessing
from segonnx.exporters.accounting import FEW
from segonnx.exporters.settings import INPUTS, InputKind
from segonnx.sources.catalog import ModelSpec

LAYOUTS: dict[InputKind, Layout] = {"uint8-nhwc": "NHWC", "uint8-nchw": "NCHW"}
"""The order of the pictures' axes of what ``segonnx export --input`` takes, but for ``float``."""


def require(spec: ModelSpec, kind: InputKind, argument: str = "--input") -> None:
    """Refuse pictures of which it is known before the weights are read that the network takes none.

    Args:
        spec: the network.
        kind: what the graph is to take.
        argument: what the user calls that, for messages.

    Raises:
        InputError: why.
    """
    if kind not in INPUTS:
        raise InputError(f"{argument} takes {', '.join(INPUTS)}; found {kind!r}")
    if kind == "float":
        return
    taken = f"{argument} {kind} is for 2D networks that see pictures"
    if len(spec.input_shape) != 4:
        raise InputError(f"{taken}, and {spec.name} takes volumes: leave it out")
    if spec.family == "nnunet" or spec.modality == "CT":
        raise InputError(f"{taken}, and {spec.name} takes images that nnU-Net prepares, or a CT: leave it out")
    if spec.input_shape[1] > FEW:
        raise InputError(f"{argument} {kind} is for pictures of up to {FEW} channels; {spec.name} takes more")


def taken(
    spec: ModelSpec, kind: InputKind, argument: str = "--input", words: tuple[str, str] = naming.WORDS
) -> ModelSpec:
    """The spec of a network whose graph takes pictures of 8 bits and prepares them; as it is where nobody asks for it.

    Args:
        spec: the network, with all that its weights tell.
        kind: what the graph is to take.
        argument: what the user calls that, for messages.
        words: what the user calls mean and standard deviation, for messages.

    Raises:
        InputError: see ``require``; or nothing tells how pictures are normalised, or they aren't RGB from 0 to 1.
    """
    require(spec, kind, argument)
    if kind == "float" or spec.pixels is not None:
        return spec
    known = preprocessing.of(spec)
    said = " and ".join(words)
    if "mean" not in known:
        raise InputError(
            f"{argument} {kind} puts mean and standard deviation into the graph, and nothing tells those of "
            f"{spec.name}'s pictures: give {said}"
        )
    if (space := known.get("input_space", "RGB")) != "RGB" or [*known.get("input_range", (0, 1))] != [0, 1]:
        raise InputError(
            f"{argument} {kind} is for RGB from 0 to 1, and {spec.name} was trained on {space} of "
            f"{known.get('input_range', [0, 1])}: leave it out, or give {said} of RGB from 0 to 1"
        )
    note = f"pictures of 8 bits, from 0 to 255, which the graph itself prepares: {known['note']}"
    described = {**spec.described, "preprocessing": {**known, "note": note, "in_graph": True}}
    pixels = Pixels(LAYOUTS[kind], tuple(known["mean"]), tuple(known["std"]))
    return replace(spec, described=described, pixels=pixels)
