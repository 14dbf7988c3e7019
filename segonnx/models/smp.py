"""segmentation-models-pytorch: any of its architectures on any of its encoders."""

from __future__ import annotations

import difflib

from segonnx.errors import InputError
from segonnx.models.base import Network


def build(*, architecture: str, encoder: str, num_classes: int, in_channels: int = 3) -> Network:
    """Build ``architecture`` (unet, segformer, ...) on ``encoder`` (resnet34, mit_b0, tu-*, ...), without weights.

    Raises:
        InputError: smp knows no such architecture or encoder, or the two don't go together.
    """
    import segmentation_models_pytorch as smp
    from segmentation_models_pytorch.encoders import encoders

    architectures = sorted(name.lower() for name in smp.MODEL_ARCHITECTURES_MAPPING)
    _known(architecture.lower(), architectures, "architecture")
    if not encoder.startswith("tu-"):  # tu- opens timm's encoders, which smp resolves itself
        _known(encoder, sorted(encoders), "encoder")
    try:
        module = smp.create_model(
            architecture, encoder_name=encoder, encoder_weights=None, in_channels=in_channels, classes=num_classes
        )
    except (ValueError, KeyError, RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"smp can't build {architecture} on {encoder}: {error}") from error
    return Network(module)


def _known(name: str, names: list[str], what: str) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"segmentation-models-pytorch has no {what} {name!r}{hint}")
