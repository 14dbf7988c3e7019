"""The same words for what operators do, whatever a runtime calls them."""

from __future__ import annotations

import re

_PATTERNS = {
    "fused": r"compiledfxgraph|subgraph|^triton|^cpp_fused",
    "convolution": r"conv(?!ert)",
    "normalisation": r"norm|mvn",
    "resampling": r"resize$|upsample|interpolate|gridsample|grid_sample",
    "data movement": r"convert|cast|copy|reorder|concat|^cat|split|slice|transpose|permute|shape|view|expand|tile|pad"
    r"|clone|contiguous|gather|scatter|squeeze|flatten|empty|strided|broadcast|depthtospace|spacetodepth|shuffle|fill"
    r"|resize_$|detach|select|repeat|index|identity",
    "matrix product": r"gemm|matmul|addmm|bmm|^mm|linear|fullyconnected|^dot|einsum|attention",
    "activation": r"relu|sigmoid|swish|gelu|silu|softmax|softplus|mish|tanh|erf|elu|clip|clamp",
    "reduction": r"reduce|mean|sum|arg|pool|amax|amin|var",
    "elementwise": r"add|sub|mul|div|eltwise|pow|sqrt|exp|neg|abs|where|max|min|reciprocal|equal|greater|less",
}
"""Each kind with what the names of its operators hold; the first that fits counts."""

OTHER = "other"
KINDS = (*_PATTERNS, OTHER)


def kind(operator: str) -> str:
    """The kind of an operator, one of ``KINDS``; ``other`` where it isn't known.

    Args:
        operator: as a runtime calls it, such as ``Conv``, ``aten::mkldnn_convolution`` or ``GroupConvolution``.
    """
    name = operator.rpartition("::")[2].lower().replace(" ", "").lstrip("_")
    return next((kind for kind, pattern in _PATTERNS.items() if re.search(pattern, name)), OTHER)
