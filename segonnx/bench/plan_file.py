"""The plan of a bench as data: all that decides what is run, for another machine; ``plan.schema.json`` has its keys."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from segonnx import runtimes
from segonnx._version import __version__
from segonnx.artifacts import layout, manifest
from segonnx.bench.plan import Settings, Target
from segonnx.bench.rounds import Rule
from segonnx.core import documents, files, hardware
from segonnx.errors import InputError, VerifyError
from segonnx.runtimes.base import Options

SCHEMA_VERSION = 1
MAX_BYTES = 2**22
"""A larger file isn't read."""
MAX_FOLDERS = 10_000
"""The most folders in which an artifact is looked for."""
_RULE = ("precision", "max_time_s", "rounds", "seed")
_KEPT = ("processes", "timeout_s", "max_memory", "autocast", "profile", "roofline", "diagnose")


@dataclass(frozen=True)
class Network:
    """One network of a plan.

    Attributes:
        name: the name that its rows carry.
        artifact: the digest of its artifact; None where a reference system is built from its name.
        input_shape: (N, C, spatial...).
        backends: the runtimes that time it.
    """

    name: str
    artifact: str | None
    input_shape: tuple[int, ...]
    backends: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What a bench runs, whatever the machine.

    Attributes:
        networks: what is timed, in this order.
        settings: how. Their threads hold where ``every_core`` doesn't.
        every_core: each machine takes as many threads as it has cores.
        input_sha256: of the bytes of the input for all; None where noise is made of each network's shape.
    """

    networks: tuple[Network, ...]
    settings: Settings
    every_core: bool = False
    input_sha256: str | None = None

    def here(self) -> Settings:
        """The settings as they hold on this machine."""
        return replace(self.settings, threads=(hardware.usable_cores(),)) if self.every_core else self.settings

    def parts(self) -> list[Plan]:
        """The same as plans of one network each. The machine's roofline peaks are measured with the first."""
        others = replace(self.settings, roofline=False)
        return [
            replace(self, networks=(network,), settings=others if number else self.settings)
            for number, network in enumerate(self.networks)
        ]

    def as_dict(self) -> dict[str, Any]:
        """The content of the file."""
        settings = self.settings.as_dict() | {"input_sha256": self.input_sha256}
        if self.every_core:
            settings["threads"] = None
        return {
            "schema_version": SCHEMA_VERSION,
            "made_with": f"segonnx {__version__}",
            "networks": [asdict(network) for network in self.networks],
            "settings": settings,
        }

    def write(self, path: Path) -> None:
        """Write the file whole or not at all.

        Raises:
            InputError: what is to be timed can't stand in a plan.
            ResourceError: it can't be written.
        """
        text = json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n"
        parse(documents.parse(text.encode(), path, MAX_BYTES), path)
        files.write(path, text)


def of(targets: Sequence[Target], settings: Settings, *, every_core: bool, input_sha256: str | None = None) -> Plan:
    """The plan of a bench that could run here.

    Args:
        targets: what is timed.
        settings: how.
        every_core: see ``Plan``.
        input_sha256: see ``Plan``.
    """
    networks = tuple(
        Network(target.name, target.digest, target.input_shape, target.backends or settings.backends)
        for target in targets
    )
    return Plan(networks, settings, every_core, input_sha256)


def read(path: Path) -> Plan:
    """The plan in a file, checked against the schema and against itself.

    Raises:
        InputError: there is none, it isn't one, or it names a runtime that isn't known.
    """
    return parse(documents.read(path, MAX_BYTES), path)


def parse(content: Any, where: Path | str) -> Plan:
    """The plan in a document; see ``read``.

    Args:
        content: what the document holds.
        where: what it is, for messages.
    """
    if (wrong := documents.misfit(content, schema(), _contradiction)) is not None:
        raise InputError(f"{where} isn't the plan of a bench: at {wrong}")
    said = content["settings"]
    settings = Settings(
        backends=tuple(said["backends"]),
        threads=(1,) if said["threads"] is None else tuple(said["threads"]),
        rule=Rule(**{key: said[key] for key in _RULE}),
        seed=said["input_seed"],
        options=Options(threads=1, **said["options"]),
        **{key: said[key] for key in _KEPT},
    )
    networks = tuple(
        Network(one["name"], one["artifact"], tuple(one["input_shape"]), tuple(one["backends"]))
        for one in content["networks"]
    )
    return Plan(networks, settings, said["threads"] is None, said["input_sha256"])


def _contradiction(content: dict[str, Any]) -> str | None:
    """The first place where a plan that fits its schema contradicts itself, and why; None where it doesn't."""
    known = content["settings"]["backends"]
    for name in known:
        if name not in runtimes.NAMES:
            return f"settings/backends: no runtime is called {name!r}; there are {', '.join(runtimes.NAMES)}"
    seen = set()
    for i, network in enumerate(content["networks"]):
        if others := [name for name in network["backends"] if name not in known]:
            return f"networks/{i}/backends: {others[0]!r} isn't one of settings/backends"
        which = network["name"], *network["input_shape"]
        if which in seen:
            return f"networks/{i}: {network['name'][:100]!r} with this input_shape is there twice"
        seen.add(which)
    return None


def find(networks: Iterable[Network], given: Sequence[Path], folder: Path) -> dict[str, Path]:
    """Where the artifacts of a plan are on this machine, by their digests.

    Args:
        networks: of the plan.
        given: artifacts that a user names.
        folder: what holds others, directly or in folders of its own.

    Raises:
        InputError: one isn't there, or another artifact is there under its name.
        VerifyError: what a user names is no artifact.
    """
    found: dict[str, Path] = {}
    others: dict[str, tuple[Path, str]] = {}
    for path, content in [*((path, manifest.read(path)) for path in given), *_inside(folder)]:
        found.setdefault(content["digest"], path)
        others.setdefault(content["name"], (path, content["digest"]))
    for network in networks:
        if network.artifact is None or network.artifact in found:
            continue
        if network.name in others:
            path, digest = others[network.name]
            raise InputError(
                f"{path} is another artifact than the plan's: its digest is {digest[:16]}..., the plan's "
                f"{network.artifact[:16]}...: bring that one here, and name it with --artifact"
            )
        raise InputError(
            f"{folder} doesn't hold the plan's {network.name} of digest {network.artifact[:16]}...: bring it here, and "
            "name it with --artifact"
        )
    return {digest: path for digest, path in found.items() if any(digest == one.artifact for one in networks)}


def _inside(folder: Path) -> list[tuple[Path, manifest.Manifest]]:
    """The artifacts in a folder and in its folders, with their manifests; what is damaged isn't one of them."""
    found = []
    level = [folder]
    count = 0
    for _ in range(2):
        inner = [child for parent in level if parent.is_dir() for child in sorted(parent.iterdir()) if child.is_dir()]
        level = inner[: MAX_FOLDERS - count]
        count += len(level)
        for child in level:
            if (child / layout.MANIFEST).is_file():
                try:
                    found.append((child, manifest.read(child)))
                except (VerifyError, OSError):
                    continue
    return found


def schema() -> dict[str, Any]:
    """The JSON Schema of a plan."""
    content: dict[str, Any] = documents.packaged("segonnx.bench", "plan.schema.json")
    return content
