"""The inputs that an export is checked on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from segonnx.core.synthetic_inputs import NAMES, Array, ParityInput, pictures
from segonnx.sources.catalog import ModelSpec

if TYPE_CHECKING:
    from segonnx.core.pixels import Bytes, Pixels

RESAMPLED = "resampled"
"""The kind of an input whose values are drawn from those of the caller's example, channel by channel."""

Feeds = dict[str, npt.NDArray[Any]]
"""What a network or its graph is given: an array for the name of each input."""


@dataclass(frozen=True)
class ModuleInput(ParityInput):
    """A test input of a caller's module.

    Its kind is one of ``NAMES``, ``resampled``, or any other: then it is the arrays of the file as they are.

    Attributes:
        file: a safetensors file of arrays, one for each input of the graph by its name.
        first: the name of the image's.
    """

    file: Path = Path()
    first: str = "input"

    @property
    def flat(self) -> bool:
        """Whether the image in the file is one number everywhere."""
        return bool(np.ptp(self._arrays()[self.first]) == 0)

    def _arrays(self) -> Feeds:
        from safetensors.numpy import load_file

        arrays: Feeds = load_file(self.file)
        return arrays

    def make(self, modality: str) -> Array:
        if self.kind in NAMES:
            return super().make(modality)
        given: Array = self._arrays()[self.first]
        return _resampled(given, self.shape, self.seed) if self.kind == RESAMPLED else given

    def more(self) -> Feeds:
        """The arrays of the other inputs. Where the batch is larger than the file's, they are repeated."""
        arrays = self._arrays()
        batch, given = len(arrays[self.first]), {name: arrays[name] for name in arrays if name != self.first}
        if self.kind not in NAMES and self.kind != RESAMPLED:
            return given
        return {
            name: _resampled(array, self._shape_of(array, batch), self.seed + number)
            for number, (name, array) in enumerate(given.items(), 1)
        }

    def _shape_of(self, array: npt.NDArray[Any], batch: int) -> tuple[int, ...]:
        """The shape of another input that goes with this one's: the batch and the spatial sizes are the image's."""
        if array.ndim == 0 or array.shape[0] != batch:
            return array.shape
        spatial = self.shape[2:] if array.ndim == len(self.shape) else array.shape[2:]
        return (self.shape[0], *array.shape[1:2], *spatial)


def _resampled(given: npt.NDArray[Any], shape: tuple[int, ...], seed: int) -> npt.NDArray[Any]:
    """An array of this shape, with values drawn from those of ``given``; of images channel by channel."""
    random = np.random.default_rng(seed)
    if len(shape) < 2 or given.ndim != len(shape) or given.shape[1] != shape[1]:
        return random.choice(given.reshape(-1), shape)
    drawn = np.empty(shape, given.dtype)
    for channel in range(shape[1]):
        drawn[:, channel] = random.choice(given[:, channel].reshape(-1), drawn[:, channel].shape)
    return drawn


def feeds(test_input: ParityInput, spec: ModelSpec) -> Feeds:
    """What the network is given for a test input.

    Where its graph takes pictures of 8 bits, they are those pictures, normalised: the two see the same.
    """
    if spec.pixels is None:
        image = test_input.make(spec.modality)
    else:
        image = spec.pixels.normalised(_drawn(test_input, spec.pixels, spec.modality))
    return {spec.input: image} | _more(test_input)


def graph_feeds(test_input: ParityInput, spec: ModelSpec) -> Feeds:
    """What the graph of the network is given for a test input: what the network is, or pictures of 8 bits."""
    if spec.pixels is None:
        return feeds(test_input, spec)
    image = spec.pixels.arranged(_drawn(test_input, spec.pixels, spec.modality))
    return {spec.input: image} | _more(test_input)


def keep(folder: Path, i: int, arrays: Feeds, spec: ModelSpec) -> None:
    """Write down what the graph of ``spec`` is given for test input i: drawing it takes longer than reading it."""
    for name, path in _files(folder, i, spec).items():
        np.save(path, arrays[name])


def kept(folder: Path, i: int, test_input: ParityInput, spec: ModelSpec) -> Feeds:
    """What the graph is given for test input i, mapped from files that are written where they aren't yet.

    Args:
        folder: where the export keeps its files.
        i: the number of the test input.
        test_input: the test input.
        spec: the network.
    """
    paths = _files(folder, i, spec)
    if not all(path.exists() for path in paths.values()):
        keep(folder, i, graph_feeds(test_input, spec), spec)
    return {name: np.load(path, mmap_mode="r", allow_pickle=False) for name, path in paths.items()}


def _files(folder: Path, i: int, spec: ModelSpec) -> dict[str, Path]:
    names = [spec.input, *(given.name for given in spec.more_inputs)]
    return {name: folder / f"input_{i}_{k}.npy" for k, name in enumerate(names)}


def graph_shape(test_input: ParityInput, spec: ModelSpec) -> list[int]:
    """The shape of the image that the graph is given for a test input."""
    return [*test_input.shape] if spec.pixels is None else spec.pixels.shape(test_input.shape)


def _drawn(test_input: ParityInput, pixels: Pixels, modality: str) -> Bytes:
    """The pictures (N, C, H, W) of a test input: drawn, or what is nearest to a caller's numbers."""
    if test_input.kind in NAMES:
        return pictures(test_input.kind, test_input.shape, test_input.seed)
    return pixels.nearest(test_input.make(modality))


def _more(test_input: ParityInput) -> Feeds:
    return test_input.more() if isinstance(test_input, ModuleInput) else {}


def plan(spec: ModelSpec, shape: tuple[int, ...], *, dynamic: bool) -> tuple[ParityInput, ...]:
    """The test inputs of an export at ``shape``; a file with open sizes is checked at a second size and batch, too."""
    inputs = [ParityInput(kind, shape) for kind in ("noise", "phantom", "constant")]
    if dynamic:
        grown = (shape[0] + 1, shape[1], *(size + step for size, step in zip(shape[2:], spec.divisors, strict=True)))
        inputs += [ParityInput("noise", grown), ParityInput("phantom", grown)]
    return tuple(inputs)


def of_module(planned: tuple[ParityInput, ...], files: list[Path], spec: ModelSpec) -> tuple[ModuleInput, ...]:
    """The test inputs of a module, whose caller gave some.

    Args:
        planned: those of ``plan``.
        files: the caller's inputs (see ``ModuleInput``), the example first.
        spec: the network.

    Returns:
        The planned ones, then the caller's; an example that is one number everywhere says no more than a constant.
    """
    from safetensors.numpy import load_file

    given = [ModuleInput("example", (), 0, file, spec.input) for file in files]
    source = next((one.file for one in given if not one.flat), files[0])
    made = [ModuleInput(one.kind, one.shape, one.seed, source, spec.input) for one in planned]
    for number, file in enumerate(files):
        shape = load_file(file)[spec.input].shape
        own = ModuleInput("test" if number else "example", shape, number, file, spec.input)
        if number or spec.more_inputs or not own.flat:
            made.append(own)
    return tuple(made)


def halved(spec: ModelSpec, shape: tuple[int, ...]) -> tuple[int, ...]:
    """One instance at half the spatial size, in multiples of what the network divides by.

    The last axis keeps two of them, so that the deepest level has more than one voxel to normalise over.
    """
    sizes = [max(step, size // 2 // step * step) for size, step in zip(shape[2:], spec.divisors, strict=True)]
    return (1, shape[1], *sizes[:-1], max(2 * spec.divisors[-1], sizes[-1]))
