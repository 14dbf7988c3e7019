"""A cluster of Dask whose workers, real processes of this machine, pretend to be of several kinds of machine."""

from __future__ import annotations

import contextlib
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from distributed import Nanny, Scheduler, SpecCluster

from tests.conftest import ROOT

PRETENCE = "PRETENDED_CPU"
"""The environment variable that tells a worker which processor it has."""
_SITE = f"""
import os

if {PRETENCE!r} in os.environ or {PRETENCE + "S"!r} in os.environ:
    import cpuinfo

    cpuinfo.get_cpu_info = lambda: {{"brand_raw": os.environ[{PRETENCE!r}], "flags": ["avx2", "fma"]}}
"""


@contextlib.contextmanager
def cluster(
    folder: Path,
    processors: Sequence[str],
    resources: dict[str, float] | None = None,
    *,
    threads: int = 1,
    env: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Run a scheduler and a worker for each processor, in processes of their own. Gives the scheduler's address.

    Args:
        folder: an empty one; the workers keep there what is brought to them.
        processors: the name of each worker's processor.
        resources: of each worker.
        threads: the tasks that each worker runs at the same time.
        env: more of the workers' environment; its PYTHONPATH comes first.
    """
    given = dict(env or {})
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(textwrap.dedent(_SITE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "PYTHONPATH",
            os.pathsep.join([*([given.pop("PYTHONPATH")] if "PYTHONPATH" in given else []), str(site), str(ROOT)]),
        )
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv(f"{PRETENCE}S", "1")
        workers: dict[str, Any] = {
            f"{number}-{processor}": {
                "cls": Nanny,
                "options": {"nthreads": threads, "resources": resources, "env": {PRETENCE: processor, **given}},
            }
            for number, processor in enumerate(processors)
        }
        scheduler = {"cls": Scheduler, "options": {"dashboard_address": ":0", "port": 0}}
        with SpecCluster(workers=workers, scheduler=scheduler, silence_logs=50) as own:
            yield own.scheduler_address
