"""Which runtimes can time which targets, before anything is timed."""

from __future__ import annotations

from dataclasses import replace

from segonnx import runtimes
from segonnx.bench import targets
from segonnx.bench.plan import Settings, Target
from segonnx.errors import InputError


def require(target: Target, settings: Settings) -> None:
    """Refuse runtimes that were named and can't time a target.

    Raises:
        InputError: which, and why.
    """
    targets.require_alike([target], settings)
    if unable := _without_network(target, settings.backends):
        raise InputError(
            f"{' and '.join(unable)} can't time {_called(target)}: {_NO_NETWORK}; leave --backend {unable[0]} out"
        )


def fitted(target: Target, settings: Settings) -> tuple[Target, str | None]:
    """A target with those runtimes that can time it, where the user named none.

    Returns:
        The target, and what to say of those that are left out; None where none is.
    """
    others: list[str] = []
    why = ""
    if target.gives != "logits":
        others = [name for name in settings.backends if runtimes.get(name).needs != "artifact"]
        why = f"it gives {target.gives}, and they would give logits"
    elif others := _without_network(target, settings.backends):
        why = _NO_NETWORK
    if not others:
        return target, None
    left = tuple(name for name in settings.backends if name not in others)
    return replace(target, backends=left), f"{_called(target)}: without {' and '.join(others)}: {why}"


def used(timed: list[Target], settings: Settings) -> Settings:
    """The settings with those runtimes alone that time any of the targets, in their order."""
    chosen = {name for target in timed for name in target.backends or settings.backends}
    return replace(settings, backends=tuple(name for name in settings.backends if name in chosen))


_NO_NETWORK = "PyTorch has no network to run, since the artifact's weights came from a file or from a module"


def _without_network(target: Target, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if runtimes.get(name).needs == "network"] if target.network is None else []


def _called(target: Target) -> str:
    return target.name if target.artifact is None else str(target.artifact)
