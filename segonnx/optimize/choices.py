"""What differs from the package's defaults: what tuning chooses, and a manifest records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from segonnx.core.hardware import Blocks

DEPTH_CHUNKS = 2
"""Depth chunks that volumes are computed in, see ``slices``. Two do for any even number of threads."""


@dataclass(frozen=True)
class Choices:
    """How a graph is rewritten.

    Attributes:
        without: names of the rewrites that are left out.
        algorithms: names of the algorithms of 3D convolutions, by the text of their ``layers.Layer``. The other
            convolutions get the default.
        depth_chunks: how many chunks the depth of a volume is divided into, and how many parts an image on rows.
        max_weight_growth: how many times the bytes of the published weights the derived ones may take, all rewritten
            convolutions together; None sets no bound.
        blocks: of the processors that are to run the graph.
    """

    without: tuple[str, ...] = ()
    algorithms: Mapping[str, str] = field(default_factory=dict)
    depth_chunks: int = DEPTH_CHUNKS
    max_weight_growth: float | None = None
    blocks: Blocks = "avx512"
