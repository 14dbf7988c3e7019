"""What building networks imports. Whoever starts many processes that build some imports this once for them all."""

from __future__ import annotations

import contextlib
import importlib
import warnings

LIBRARIES = ("timm", "segmentation_models_pytorch", "dynamic_network_architectures.architectures.unet")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's, of what timm uses
    for _name in LIBRARIES:
        with contextlib.suppress(Exception):  # missing or broken: whoever needs it says so, and the others go on
            importlib.import_module(_name)
