from __future__ import annotations

import pytest

from segonnx.core import hardware

HYPER_THREADED = {0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7", 4: "0,4", 5: "1,5", 6: "2,6", 7: "3,7"}


@pytest.mark.parametrize(
    ("cores", "threads", "cpus"),
    [
        ({0: "0", 1: "1"}, 1, [0]),
        ({0: "0", 1: "1"}, 2, [0, 1]),
        ({0: "0", 1: "1"}, 8, [0, 1]),
        (HYPER_THREADED, 4, [0, 1, 2, 3]),
        (HYPER_THREADED, 5, [0, 1, 2, 3, 4]),
        ({0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}, 2, [0, 2]),
        ({5: "1,5", 6: "2,6"}, 1, [5]),
    ],
)
def test_threads_get_a_core_each_first(cores: dict[int, str], threads: int, cpus: list[int]) -> None:
    assert hardware.one_per_core_first(cores, threads) == cpus


def test_only_processors_that_may_be_used_are_chosen() -> None:
    assert len(hardware.choose_cpus(1)) == 1
    assert len(hardware.choose_cpus(10_000)) == hardware.usable_cores()
