"""Sessions that run an artifact's graphs to check them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from segonnx.core.ort_session import SessionSettings, open_session

if TYPE_CHECKING:
    import onnxruntime

RUNTIME = "ONNX Runtime CPU"
STABLE_NORM_RUNTIME = (
    f"{RUNTIME}, with each large InstanceNormalization of the file computed by sums that lose no digits"
)


def open_plain(path: Path, settings: SessionSettings) -> tuple[onnxruntime.InferenceSession, str]:
    """A session of the graph that is made for any runtime, as exact as the graph is.

    ONNX Runtime's own InstanceNormalization loses digits over large volumes, which isn't the graph's fault (see
    docs/decisions/0003). In the session it is computed by exact sums; the file stays as it is, and so do its weights.

    Args:
        path: the graph's file.
        settings: how it runs.

    Returns:
        The session, and what it is, as the manifest's ``parity.runtime`` says it.

    Raises:
        Exception: of many classes: the model doesn't load.
    """
    from segonnx.optimize.stable_instance_norm import with_exact_sums

    changed = with_exact_sums(path)
    if changed is None:
        return open_session(path, settings), RUNTIME
    return open_session(changed, replace(settings, weights=path.parent)), STABLE_NORM_RUNTIME
