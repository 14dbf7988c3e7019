"""The one place that makes a session of ONNX Runtime: on the CPU, quiet, with as many threads as it is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from segonnx.core import arithmetic
from segonnx.core.subprocesses import STEP_S

if TYPE_CHECKING:
    import onnxruntime

LEAST_S = 5.0
"""What loading a model, or one run of it, may take at least, however small it is."""

GraphOptimization = Literal["all", "layout", "extended", "basic", "disabled"]


@dataclass(frozen=True)
class SessionSettings:
    """How a session runs.

    Attributes:
        threads: threads of each operator; 0 leaves the number to ONNX Runtime.
        arena: keep freed memory for the next run; without it, memory goes back to the system at once.
        spinning: let idle threads wait actively for a while: ``on``, ``off``, or ``while-running``: until a run ends.
        graph_optimization: what ONNX Runtime does to the graph.
        profile: prefix of the file that its profiler writes; None for no profile.
        denormals_as_zero: let the session's own threads take 0 for numbers that are too small for float32's normal
            form, which take very long. ``arithmetic.denormals_as_zero`` does it for the thread that runs it.
        weights: the folder of the files of its weights, for a model that is given as bytes.
        memory_pattern: take the memory of a run at once, as the first one took it. It leaves gaps that nothing uses.
    """

    threads: int = 0
    arena: bool = True
    spinning: Literal["on", "off", "while-running"] = "on"
    graph_optimization: GraphOptimization = "all"
    profile: str | None = None
    denormals_as_zero: bool = False
    weights: Path | None = None
    memory_pattern: bool = True


def open_session(model: Path | bytes, settings: SessionSettings | None = None) -> onnxruntime.InferenceSession:
    """A session of ONNX Runtime on the CPU.

    Args:
        model: the file, or its bytes.
        settings: how it runs.

    Raises:
        Exception: ONNX Runtime's own, of many classes: the model doesn't load.
    """
    import onnxruntime

    how = settings or SessionSettings()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = how.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = how.arena
    options.enable_mem_pattern = how.memory_pattern
    level = how.graph_optimization
    name = "ORT_DISABLE_ALL" if level == "disabled" else f"ORT_ENABLE_{level.upper()}"
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, name)
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(how.spinning != "off")))
    if how.spinning == "while-running":
        options.add_session_config_entry("session.force_spinning_stop", "1")
    if how.denormals_as_zero:
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
    if how.weights is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(how.weights))
    if how.profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = how.profile
    source = model if isinstance(model, bytes) else str(model)
    with arithmetic.kept():  # ONNX Runtime changes the caller's, too
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def model_bytes(model: Path) -> int:
    """The size of a model's file, with the files of its weights beside it: those whose names hold ``.onnx``."""
    return sum(path.stat().st_size for path in model.parent.glob("*.onnx*") if path.is_file())


def load_seconds(model: Path, timeout: float | None) -> float:
    """The most seconds that loading a model may take: ``timeout``, or where it is None, as its size lets expect.

    A graph may hold constants that take for ever to compute. Loading takes a second for some hundred MB.
    """
    return timeout if timeout is not None else min(STEP_S, 2 * LEAST_S + 1e-6 * model_bytes(model))


def run_seconds(model: Path, positions: int, timeout: float | None) -> float:
    """The most seconds that one run of a model may take: ``timeout``, or where it is None, as its size lets expect.

    A graph may hold a loop without end. No network multiplies each of its weights more than once for each place of its
    input, nor does much else there; the time is that of a machine a hundred times as slow as usual ones.

    Args:
        model: its file.
        positions: the product of the input's batch and spatial sizes.
        timeout: what a user said.
    """
    if timeout is not None:
        return timeout
    return min(STEP_S, LEAST_S + positions * (1e-4 + 1e-9 * model_bytes(model)))
