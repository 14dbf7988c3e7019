from __future__ import annotations

import errno
import logging
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from segonnx.core import subprocesses
from segonnx.core.subprocesses import Bounds
from segonnx.errors import InputError, ResourceError, StageError
from tests.conftest import ROOT


def double(x: int, progress: subprocesses.Progress) -> int:
    progress("doubling")
    return 2 * x


def refuse(progress: subprocesses.Progress) -> None:
    raise InputError("not like this")


def die(progress: subprocesses.Progress) -> None:
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def fill_disk(progress: subprocesses.Progress) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def stumble(progress: subprocesses.Progress) -> None:
    raise ZeroDivisionError("oh")


def hold(size: int, progress: subprocesses.Progress) -> int:
    return len(b"x" * size)


def test_the_result_comes_back_with_the_steps() -> None:
    steps: list[str] = []
    outcome = subprocesses.call(double, 21, progress=steps.append)
    assert outcome.value == 42
    assert steps == ["doubling"]


def test_the_peak_is_that_of_the_process_alone() -> None:
    assert subprocesses.call(double, 1).peak_rss_bytes < 10**8
    assert subprocesses.call(hold, 3 * 10**8).peak_rss_bytes > 3 * 10**8


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (refuse, InputError, "not like this"),
        (fill_disk, ResourceError, "disk is full"),
        (stumble, StageError, "ZeroDivisionError: oh"),
        (die, StageError, "killed by SIGKILL.*last words"),
    ],
)
def test_a_failure_comes_back_as_one_line(function: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        subprocesses.call(function)
    assert "\n" not in str(caught.value)


def log(progress: subprocesses.Progress) -> None:
    logger = logging.getLogger("segonnx.somewhere")
    logger.info("counted %d", 3)
    logger.debug("not asked for")


@pytest.mark.parametrize(("level", "expected"), [(logging.INFO, ["counted 3"]), (logging.WARNING, [])])
def test_what_a_process_logs_is_logged_here(caplog: pytest.LogCaptureFixture, level: int, expected: list[str]) -> None:
    with caplog.at_level(level, logger="segonnx"):
        subprocesses.call(log)
    assert [record.getMessage() for record in caplog.records if record.name == "segonnx.somewhere"] == expected
    workers = [record.getMessage() for record in caplog.records if record.name == "segonnx.worker"]
    assert len(workers) == 2 * len(expected)
    assert all(text.endswith((" started", " ended with exit code 0")) for text in workers)


def sleep(progress: subprocesses.Progress) -> None:
    progress("sleeping")
    time.sleep(600)


def test_a_step_that_takes_too_long_is_ended() -> None:
    with pytest.raises(StageError, match="sleep took more than 3 s"):
        subprocesses.call(sleep, bounds=Bounds(timeout=3.0))


def hold_capped(size: int, progress: subprocesses.Progress) -> int:
    subprocesses.cap_memory(2 * 10**8)
    return hold(size, progress)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts a process's own memory")
def test_memory_is_capped() -> None:
    assert subprocesses.call(hold_capped, 10**7).value == 10**7
    with pytest.raises(ResourceError, match="memory ran out"):
        subprocesses.call(hold_capped, 3 * 10**8)


def look(progress: subprocesses.Progress) -> tuple[bool, str | None]:
    return "wave" in sys.modules, os.environ.get("SEGONNX_TEST")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every process begins afresh")
def test_a_process_finds_imported_what_is_preloaded_and_has_the_environment_of_now() -> None:
    assert subprocesses.call(look).value == (False, None)
    code = (
        "import os\nfrom segonnx.core import subprocesses\nfrom tests.core.test_subprocesses import look\n"
        "print(subprocesses.call(look, preload=('wave',)).value)\nos.environ['SEGONNX_TEST'] = 'now'\n"
        "print(subprocesses.call(look, preload=('wave',)).value)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines() == ["(True, None)", "(True, 'now')"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every process begins afresh")
def test_where_no_socket_can_be_made_a_process_begins_afresh(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    code = (
        "from segonnx.core import subprocesses\nfrom tests.core.test_subprocesses import look\n"
        "print(subprocesses.call(look, preload=('wave',)).value)\n"
    )
    environment = {**os.environ, "TMPDIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True, env=environment
    )
    assert done.stdout.strip() == "(False, None)"


def count(number: int, progress: subprocesses.Progress) -> Iterator[int]:
    for index in range(number):
        progress(f"counting {index}")
        yield index
    if number > 5:
        raise InputError("too many")


def test_results_come_one_after_another() -> None:
    steps: list[str] = []
    assert list(subprocesses.stream(count, 3, progress=steps.append)) == [0, 1, 2]
    assert steps == ["counting 0", "counting 1", "counting 2"]
    found = subprocesses.stream(count, 6)
    assert [next(found) for _ in range(6)] == list(range(6))
    with pytest.raises(InputError, match="too many"):
        next(found)


def dawdle(limit: float, progress: subprocesses.Progress) -> str:
    progress("dawdling")
    with subprocesses.limited(600, "a nap"):
        time.sleep(2)
    with subprocesses.limited(limit, "a rest"):
        time.sleep(1)
    return "rested"


def test_a_part_of_the_work_has_a_limit_of_its_own() -> None:
    bounds = Bounds(timeout=1.5)
    assert subprocesses.call(dawdle, 600, bounds=bounds).value == "rested"
    with pytest.raises(StageError, match=r"a rest took more than 0\.3 s: --timeout allows more"):
        subprocesses.call(dawdle, 0.3, bounds=bounds)


def rest_of_two(slower: float, progress: subprocesses.Progress) -> str:
    def rest(seconds: float) -> None:
        with subprocesses.limited(1.5, "a rest"):
            time.sleep(seconds)

    progress("resting")
    others = [threading.Thread(target=rest, args=(seconds,)) for seconds in (0.1, slower)]
    for one in others:
        one.start()
    for one in others:
        one.join()
    with subprocesses.limited(600, "a nap"):
        time.sleep(0.1)
    return "rested"


def test_a_thread_that_ends_leaves_the_limit_of_another() -> None:
    assert subprocesses.call(rest_of_two, 0.2).value == "rested"
    with pytest.raises(StageError, match=r"a rest took more than 1\.5 s"):
        subprocesses.call(rest_of_two, 60.0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts a process's own memory")
def test_bounds_are_those_of_the_process() -> None:
    assert subprocesses.call(hold, 10**7, bounds=Bounds(memory=2 * 10**8)).value == 10**7
    with pytest.raises(ResourceError, match="memory ran out"):
        subprocesses.call(hold, 3 * 10**8, bounds=Bounds(memory=2 * 10**8))
    assert subprocesses.call(hold, 3 * 10**8, bounds=Bounds(memory=2 * 10**8, mapped=3 * 10**8)).value == 3 * 10**8


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts a process's own memory")
def test_a_block_has_room_of_its_own() -> None:
    with pytest.raises(MemoryError), subprocesses.room(10**8):
        bytes(2 * 10**8)
    with subprocesses.room(3 * 10**8):
        assert len(bytes(2 * 10**8)) == 2 * 10**8
    assert len(bytes(2 * 10**8)) == 2 * 10**8


def leave_a_folder(where: str, progress: subprocesses.Progress) -> None:
    with tempfile.TemporaryDirectory(dir=where):
        progress("sleeping")
        time.sleep(600)


def test_a_process_that_is_ended_clears_up(tmp_path: Path) -> None:
    with pytest.raises(StageError):
        subprocesses.call(leave_a_folder, str(tmp_path), bounds=Bounds(timeout=2.0))
    assert not list(tmp_path.iterdir())


def test_a_process_starts_where_the_standard_streams_are_closed() -> None:
    code = (
        "from segonnx.core import subprocesses\nfrom tests.core.test_subprocesses import double\n"
        "if __name__ == '__main__':\n    raise SystemExit(subprocesses.call(double, 21).value)\n"
    )
    done = subprocess.run(["sh", "-c", f"'{sys.executable}' -c \"{code}\" <&- >&- 2>&-"], check=False, cwd=ROOT)
    assert done.returncode == 42


def linger(channel: Any) -> None:
    channel.send(os.getpid())
    time.sleep(600)


@pytest.mark.parametrize("preload", [(), ("wave",)])
def test_workers_end_with_their_parent(preload: tuple[str, ...]) -> None:
    code = (
        "import time\nfrom segonnx.core.subprocesses import Worker\nfrom tests.core.test_subprocesses import linger\n"
        f"if __name__ == '__main__':\n    print(Worker(linger, preload={preload}).receive('x'), flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert psutil.pid_exists(child)
        parent.kill()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the worker outlived its parent"
        time.sleep(0.05)


def faults(keeping: bool, progress: subprocesses.Progress) -> int:
    """How often the system must hand out pages to a process that takes and frees much memory again and again."""
    import resource

    del progress
    if keeping:
        subprocesses.keep_freed_memory()
    bytes(bytearray(10**8))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        bytes(bytearray(10**8))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no other C library is told so")
def test_freed_memory_is_used_again() -> None:
    kept, given_back = (subprocesses.call(faults, keeping).value for keeping in (True, False))
    assert kept < 0.1 * given_back
