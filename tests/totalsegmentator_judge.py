"""Runs TotalSegmentator's own Python API; see ``totalsegmentator_folders.judge``. It imports nothing of segonnx."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

EVERY_S, REST = 0.1, 30
"""How often memory is looked at, and how many times as long as a look took no other is taken: the system counts pages
on one of the processors, for hundredths of a second where there are many."""


def _watch(ended: threading.Event, found: list[int]) -> None:
    """Take down the most memory of this process and of what it starts; a page that several have counts once."""
    own, took = psutil.Process(), 0.0
    while not ended.wait(max(EVERY_S, REST * took)):
        began = time.perf_counter()
        with contextlib.suppress(psutil.Error):
            found.append(sum(one.memory_full_info().pss for one in (own, *own.children(recursive=True))))
        took = time.perf_counter() - began


def _stay_in_this_process() -> None:
    """Let nnU-Net take its own function that does the same without processes, whose start takes seconds."""
    import totalsegmentator.nnunet as module

    def predict_from_files(self: Any, source: Any, target: Any, **how: Any) -> Any:
        return self.predict_from_files_sequential(source, target, how["save_probabilities"], how["overwrite"])

    module.nnUNetPredictor.predict_from_files = predict_from_files


def main(path: str) -> None:
    """Run what the file asks for, and print what came of it."""
    asked = json.loads(Path(path).read_text())
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import totalsegmentator.python_api as api

    if asked["wide"]:
        import torch

        torch.half = torch.float32  # what nnU-Net adds its windows up in
    if not asked["processes"]:
        _stay_in_this_process()

    # The licence is of TotalSegmentator's weights; these are made by the tests.
    api.show_license_info = lambda: None
    results: list[dict[str, Any]] = []
    for run in asked["runs"]:
        ended, peaks = threading.Event(), [0]
        watcher = threading.Thread(target=_watch, args=(ended, peaks))
        if asked["processes"]:  # as for users; watching takes time
            watcher.start()
        began, error = time.perf_counter(), None
        try:
            api.totalsegmentator(device="cpu", quiet=True, nr_thr_saving=1, **run)
        except Exception as failure:  # noqa: BLE001 (whatever it is, the test tells)
            error = repr(failure)
        seconds = time.perf_counter() - began
        ended.set()
        if asked["processes"]:
            watcher.join()
        results.append({"seconds": seconds, "peak": max(peaks), "error": error})
    print(json.dumps(results), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
