"""How labels follow from a network's output: what its numbers are, and whether classes may overlap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy.typing as npt

Kind = Literal["logits", "probabilities"]
"""What a network's numbers are."""

LEVELS: dict[Kind, float] = {"logits": 0.0, "probabilities": 0.5}
"""Where a class begins that is decided by itself: the logit of even odds, and their probability."""


@dataclass(frozen=True)
class Decision:
    """The rule that makes labels of an output (N, classes, spatial...).

    Attributes:
        above: each class by itself: it is there where its value is above this. None: the class with the largest value,
            the first of those that tie.
    """

    above: float | None

    @property
    def text(self) -> str:
        """The rule as it stands in a manifest."""
        return "argmax" if self.above is None else f"above {self.above:g}"

    def __call__(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The labels of an output.

        Args:
            values: (N, classes, spatial...).

        Returns:
            (N, spatial...) of the classes' numbers; by ``above`` (N, classes, spatial...) of bool.
        """
        decided: npt.NDArray[Any] = values.argmax(axis=1) if self.above is None else values > self.above
        return decided


def decision(kind: Kind, classes: int, *, overlapping: bool = False) -> Decision:
    """The rule for an output.

    Args:
        kind: what its numbers are.
        classes: how many classes it has; one stands against the background.
        overlapping: whether a voxel may be of several.
    """
    return Decision(LEVELS[kind] if classes == 1 or overlapping else None)


def of_output(output: Mapping[str, Any], *, regions: bool = False) -> Decision:
    """The rule for an output that a manifest describes.

    Args:
        output: its entry. Those of earlier versions have no rule: they hold logits.
        regions: whether they are logits of regions, which nnU-Net lets overlap.
    """
    if (text := output.get("decision")) is not None:
        return Decision(None if text == "argmax" else float(text.removeprefix("above ")))
    return decision("logits", output["shape"][1], overlapping=regions)
