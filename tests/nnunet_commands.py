"""nnU-Net's own commands as judges, in this process: a Python that imports torch anew takes many seconds."""

from __future__ import annotations

import multiprocessing
import multiprocessing.dummy
import sys
import warnings
from importlib.metadata import entry_points
from typing import Any
from unittest import mock


def nnunet(command: str, *arguments: object) -> None:
    """Run one of nnU-Net's commands, such as ``nnUNetv2_ensemble``. Its pools of processes are pools of threads."""
    (found,) = entry_points(group="console_scripts", name=command)
    context = multiprocessing.get_context

    def threads(method: str | None = None) -> Any:
        return multiprocessing.dummy if method == "spawn" else context(method)

    words = [command, *map(str, arguments)]
    with (
        warnings.catch_warnings(),
        mock.patch.object(multiprocessing, "get_context", threads),
        mock.patch.object(sys, "argv", words),
    ):
        warnings.simplefilter("ignore")
        found.load()()
