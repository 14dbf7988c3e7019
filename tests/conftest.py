"""What tests share: a small network of a real family, and one export of it."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import locale
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import cpuinfo
import pytest
from click.testing import CliRunner

from segonnx.cli import main
from segonnx.core import subprocesses
from segonnx.core.subprocesses import Bounds, Outcome, Progress
from segonnx.sources import catalog
from segonnx.sources.catalog import ModelSpec
from segonnx.sources.nnunet import plans
from segonnx.sources.nnunet.model_spec import CheckpointMeta, model_spec
from tests import handmade

ROOT = Path(__file__).resolve().parents[1]
T = TypeVar("T")
SMALL = "encoder-mobilenetv3-small"
"""The reference system with the cheapest pass."""
CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")
"""What ``dataset`` holds."""
LIBRARIES = (
    "torch._dynamo", "onnxscript", "onnx_ir", "onnxruntime", "openvino", "segonnx.models.preloaded",
    "segonnx.bench.worker", "segonnx.artifacts.verify", "segonnx.predict.bounded", "segonnx.predict.cohort",
)  # fmt: skip
"""What processes take long to import."""
LONG = (
    "bench/test_bench.py", "runtimes/test_conformance.py", "optimize/test_search.py", "predict/test_cohort.py",
    "predict/test_cluster_cohort.py", "exporters/test_pipeline.py", "exporters/test_nnunet.py",
    "quantization/test_quantize.py", "test_cli.py", "predict/test_service.py", "exporters/test_trained.py",
    "exporters/test_pixels.py", "exporters/test_smp.py", "exporters/test_rounding.py", "exporters/test_labels.py",
    "exporters/test_parity.py", "exporters/test_constants.py", "exporters/test_scheduler.py",
    "exporters/test_elsewhere.py", "predict/test_ensemble.py", "predict/test_totalsegmentator.py",
    "predict/test_heads.py", "predict/test_bounded.py", "predict/test_series_files.py",
    "models/test_infer_sizes.py", "artifacts/test_two_graphs.py", "test_fuzz.py", "benchmarks/test_faults.py",
    "dicom/test_orientation.py", "bench/test_scheduler.py",
)  # fmt: skip
"""The files whose tests take long: they begin, so that the processes that run tests side by side end together."""

_BLOCK_TORCH = """
from importlib.machinery import PathFinder

blocked = "torch torchvision timm segmentation_models_pytorch onnxscript dynamic_network_architectures".split()
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, path=None, target=None: None if name in blocked else find(name, path, target)
"""


def pytest_configure() -> None:
    """Make tests quicker: the processes that run them side by side get a processor each.

    Otherwise each would start a thread for every processor, and all would wait for one another.
    """
    # torch.compile then takes the processor's word for what it can, and compiles no test programs for each network.
    os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and hasattr(os, "sched_setaffinity"):
        usable = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {usable[int(worker.removeprefix("gw")) % len(usable)]})


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files whose tests take long first, and then those of the most tests, as xdist would."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    counts = Counter(item.path for item in items)
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONG)}
    assert all(path.is_file() for path in places)
    items.sort(key=lambda item: (places.get(item.path, len(LONG)), -counts[item.path], item.path))


def tiny_system() -> ModelSpec:
    """STU-Net with four channels: the real 3D family at a size for tests."""
    return replace(
        catalog.find("stunet-s"),
        name="stunet-tiny",
        options={"depth": 1, "width": 4},
        input_shape=(1, 1, 32, 64, 64),
        num_classes=5,
        reference=None,
        published=(),
        published_macs=(),
    )


def little_system() -> ModelSpec:
    """nnU-Net with four channels and three levels: it exports in a fifth of the time."""
    plan = plans.plan(handmade.plans(), handmade.dataset(4), "3d_fullres", Path("plans.json"))
    meta = CheckpointMeta(Path("checkpoint_final.pth"), "3d_fullres", "nnUNetTrainer", (0, 1, 2), None, None)
    return replace(model_spec(plan, meta, ["0"], "final"), name="nnunet-little")


@pytest.fixture(autouse=True)
def locale_of_the_user() -> Iterator[None]:
    """Libraries that read images set the process's locale, with which Python then decodes what processes print."""
    yield
    locale.setlocale(locale.LC_ALL, "")


@pytest.fixture(scope="session", autouse=True)
def known_processor() -> Iterator[None]:
    """What the processor is takes more than a second to find out, and a bench asks for it several times."""
    with mock.patch.object(cpuinfo, "get_cpu_info", functools.cache(cpuinfo.get_cpu_info)):
        yield


@pytest.fixture(scope="session")
def tiny() -> ModelSpec:
    """``tiny_system``, for tests."""
    return tiny_system()


@pytest.fixture(scope="session")
def little() -> ModelSpec:
    """``little_system``, for tests."""
    return little_system()


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of artifacts that the command line exported; tests must leave it as it is."""
    return once(tmp_path_factory, "exports", lambda root: export(SMALL, "--out", root))


@pytest.fixture(scope="session")
def hand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of a folder in nnU-Net's layout, whose axes aren't the image's; tests must leave it as it is."""

    def make(root: Path) -> None:
        folder = handmade.write(root / "results", handmade.plans(), handmade.dataset())
        export("--nnunet", folder, "--out", root / "artifacts")

    (artifact,) = (once(tmp_path_factory, "hand", make) / "artifacts").iterdir()
    return artifact


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a data set with four configurations; tests must leave them as they are."""

    def make(root: Path) -> None:
        for configuration in CONFIGURATIONS:
            handmade.write(
                root,
                handmade.several(),
                handmade.dataset(),
                configuration=configuration,
                mirror_axes=(0, 1) if configuration == "2d" else (0, 1, 2),
            )

    return once(tmp_path_factory, "whole", make) / "Dataset998_Whole"


@pytest.fixture(scope="session")
def ensemble(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mean of 2d and of a cascade, whose first stage is inside; tests must leave it as it is."""

    def make(root: Path) -> None:
        printed = export("--nnunet", dataset, "--ensemble", "2d", "3d_cascade_fullres", "--out", root)
        assert "the mean of 2 networks and 1 first stage" in printed

    (artifact,) = once(tmp_path_factory, "ensemble", make).iterdir()
    return artifact


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first of the processes that run tests side by side makes, and the others wait for."""
    root = factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / name).exists():
            with tempfile.TemporaryDirectory(dir=root) as made:
                make(Path(made) / name)
                (Path(made) / name).rename(root / name)
    return root / name


def export(*arguments: object) -> str:
    """Run ``segonnx export``, whose steps run in this process, and give what it printed."""
    with steps_in_process():
        result = run("export", *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


@contextlib.contextmanager
def steps_in_process() -> Iterator[None]:
    """Steps run in this process, and not each in one of its own, which would import torch anew."""
    from tests import lookups  # what exports import takes processes of tests half a second

    def call(
        function: Callable[..., T],
        /,
        *args: Any,
        progress: Progress,
        bounds: Bounds | None = None,
        preload: Sequence[str] = (),
    ) -> Outcome[T]:
        del bounds, preload
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in a process of its own
            try:
                value = function(*args, progress)
            except Exception as error:
                raise subprocesses.translate(error) from error
        return Outcome(value, subprocesses.peak_rss_bytes(), time.perf_counter() - started)

    def stream(
        function: Callable[..., Iterator[T]], /, *args: Any, progress: Progress, bounds: Bounds | None = None
    ) -> Iterator[T]:
        del bounds
        try:
            yield from function(*args, progress)
        except Exception as error:
            raise subprocesses.translate(error) from error

    @contextlib.contextmanager
    def converse(
        function: Callable[..., None], /, *args: Any, progress: Progress, bounds: Bounds | None = None
    ) -> Iterator[Any]:
        del bounds
        requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        answers: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                function(iter(requests.get, None), lambda answer: answers.put((answer, None)), *args, progress)
            except Exception as error:  # noqa: BLE001
                answers.put((None, subprocesses.translate(error)))

        def receive() -> Any:
            answer, error = answers.get()
            if error is not None:
                raise error
            return answer

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield types.SimpleNamespace(send=requests.put, receive=receive)
        finally:
            requests.put(None)
            thread.join()

    with (
        mock.patch.object(subprocesses, "call", functools.partial(call, progress=subprocesses.silent)),
        mock.patch.object(subprocesses, "stream", stream),
        mock.patch.object(subprocesses, "converse", converse),
        mock.patch.object(subprocesses, "keep_freed_memory"),  # nothing would take it back
        lookups.remembered(),
    ):
        yield


@pytest.fixture(scope="module")
def steps_here() -> Iterator[None]:
    """For tests of what steps compute: they run in the test's process. That they have their own is tested elsewhere."""
    with steps_in_process():
        yield


@pytest.fixture
def copied_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process is a copy of one that has imported the libraries: afresh, a runtime's takes seconds for that.

    For tests of what processes do. That they begin afresh in a bench and a check is tested elsewhere.
    """
    start = subprocesses.Worker.__init__

    def init(own: subprocesses.Worker, function: Callable[..., None], *args: Any, preload: Sequence[str] = ()) -> None:
        start(own, function, *args, preload=preload or LIBRARIES)

    monkeypatch.setattr(subprocesses.Worker, "__init__", init)


@pytest.fixture
def artifact(exports: Path, tmp_path: Path) -> Path:
    """A copy of the small reference system's artifact, to do with as one likes."""
    return shutil.copytree(exports / SMALL, tmp_path / SMALL)


@pytest.fixture
def without_torch(tmp_path: Path) -> dict[str, str]:
    """An environment in which torch and all that the export extra brings can't be imported, in child processes too."""
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text(_BLOCK_TORCH)
    return {**os.environ, "PYTHONPATH": str(tmp_path / "blocked")}


def run(
    *arguments: object, env: dict[str, str] | None = None, process: bool = False, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run ``segonnx`` as its user would, in this process: a Python that starts anew takes half a second.

    It has a process of its own where it gets an environment or other options of ``subprocess.run``, and where the test
    asks for it: because it reads what only a process has, such as a traceback on standard error.

    What the command raised and didn't expect is a line of standard error here too, and exit code 70; with ``--debug``
    it is raised.
    """
    if process or env is not None or options:
        command = [sys.executable, "-m", "segonnx", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, check=False, **options)
    words = list(map(str, arguments))
    with contextlib.chdir(ROOT), warnings.catch_warnings():
        # Libraries that a command imports may warn, as they may in a process of their own; segonnx may not.
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", module=r"segonnx\b")
        done = CliRunner(catch_exceptions=False).invoke(main, words, prog_name="segonnx")
    return subprocess.CompletedProcess(["segonnx", *words], done.exit_code, done.stdout, done.stderr)


def message(done: subprocess.CompletedProcess[str]) -> str:
    """What a command said on standard error, without the progress that it tells of where a step takes long."""
    return "\n".join(line for line in done.stderr.splitlines() if not line.endswith(" ..."))
