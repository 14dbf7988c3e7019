"""Parameters that the output doesn't depend on are found by running, and nothing else is taken for one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from segonnx.models import unreached
from segonnx.models.base import BuiltModel


class Deep(nn.Module):
    """Has a layer that never runs, one that runs for nothing, and one whose gradient is cut off."""

    def __init__(self, *, cut: bool = False) -> None:
        super().__init__()
        self.first, self.deeper, self.idle, self.head = (nn.Conv2d(2, 2, 1) for _ in range(4))
        self.cut = nn.Conv2d(2, 2, 1) if cut else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        self.deeper(x)
        if self.cut is not None:
            x = x + self.cut(x).detach()
        return self.head(x)


def _explained(module: nn.Module, **unused: str) -> dict[str, str]:
    twin = copy.deepcopy(module).to("meta")
    return dict(unreached.explain(BuiltModel(module.eval(), unused), twin, torch.randn(1, 2, 4, 4)).unused)


def test_layers_that_never_run_and_those_that_run_for_nothing_are_found() -> None:
    (pattern,) = _explained(Deep())
    assert pattern.replace("\\", "").split("|") == ["deeper.weight", "deeper.bias", "idle.weight", "idle.bias"]


def test_a_layer_behind_a_cut_gradient_is_no_such() -> None:
    assert _explained(Deep(cut=True)) == {}


def test_reasons_that_are_known_stay() -> None:
    found = _explained(Deep(), **{r"idle\..*": "for training"})
    assert list(found.values()) == ["for training", unreached.REASON]
    assert "idle" not in list(found)[1]
    full = {r"(idle|deeper)\..*": "for training"}
    assert _explained(Deep(), **full) == full


@pytest.mark.parametrize("names", [["first.weight"], ["head.bias"], ["deeper.bias", "head.weight"]])
def test_a_layer_that_counts_changes_the_output(names: list[str]) -> None:
    assert not unreached.same_with_nan(Deep().eval(), names, torch.randn(1, 2, 4, 4))


def test_networks_that_compute_in_place_tell_nothing() -> None:
    class InPlace(Deep):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.first.weight.mul_(1)
            return super().forward(x)

    assert unreached.without_gradient(InPlace(), torch.zeros(1, 2, 4, 4)) is None
    assert _explained(InPlace()) == {}


def test_networks_with_tensors_of_their_own_run_where_these_are() -> None:
    class Own(Deep):
        def __init__(self) -> None:
            super().__init__()
            self.grid = torch.ones(1, 2, 4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x * self.grid)

    assert unreached.without_gradient(Own().to("meta"), torch.zeros(1, 2, 4, 4, device="meta")) is None
    assert list(_explained(Own()).values()) == [unreached.REASON]
