"""What an export looks up, and is the same for each network: tests that export many look it up once.

It is more than half of what the export of a small network takes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from segonnx.artifacts import sbom
from segonnx.exporters import convert

_convert = convert._program
_render = functools.cache(sbom.render)


@functools.cache
def _known() -> tuple[Any, Callable[[set[Any]], dict[Any, Any]], Callable[[], set[Any]]]:
    """How torch translates each operator, for each opset, what it decomposes the others into, and what it keeps."""
    import torch
    from torch.onnx._internal.exporter import _decomp, _registration

    collect = torch._export.utils._collect_all_valid_cia_ops
    table = functools.cache(_decomp.create_onnx_friendly_decomposition_table)
    kept = functools.cache(lambda _: collect())
    translations = staticmethod(functools.cache(_registration.ONNXRegistry.from_torchlib))
    return (
        translations,
        lambda operators: dict(table(frozenset(operators))),  # which torch changes
        lambda: set(kept(frozenset(torch.ops._dir))),
    )


def _program(*arguments: Any) -> Any:
    """``convert._program``, which imports torch."""
    from torch.export import exported_program
    from torch.onnx._internal.exporter import _decomp, _registration

    translations, table, kept = _known()
    with (
        mock.patch.object(_registration.ONNXRegistry, "from_torchlib", translations),
        mock.patch.object(_decomp, "create_onnx_friendly_decomposition_table", table),
        mock.patch.object(exported_program, "_collect_all_valid_cia_ops", kept),
    ):
        return _convert(*arguments)


@contextlib.contextmanager
def remembered() -> Iterator[None]:
    """Torch's translations and the packages here are looked up once for all exports of this process."""
    with mock.patch.object(convert, "_program", _program), mock.patch.object(sbom, "render", _render):
        yield
