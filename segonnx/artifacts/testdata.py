"""Test data in the layout of the ONNX backend tests, which other people's test runners replay.

``data.json`` beside the model holds the tolerances that ``onnx.backend.test`` reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segonnx.artifacts import layout
from segonnx.errors import VerifyError


def write(
    artifact: Path,
    given: Mapping[str, npt.NDArray[Any]],
    answers: Mapping[str, npt.NDArray[Any]],
    *,
    atol: float,
    rtol: float,
) -> None:
    """Write one set of inputs and what it must give.

    Args:
        artifact: the folder.
        given: the model's inputs by their names, in the graph's order.
        answers: the reference's outputs by what they are, in the graph's order.
        atol: absolute tolerance of each value.
        rtol: relative tolerance of each value.
    """
    import onnx
    from onnx import numpy_helper

    (artifact / layout.TEST_DATA).mkdir()
    for arrays, file in ((given, layout.input_file), (answers, layout.output_file)):
        for number, (name, array) in enumerate(arrays.items()):
            onnx.save_tensor(numpy_helper.from_array(np.asarray(array), name), artifact / file(number))
    (artifact / layout.TOLERANCES).write_text(json.dumps({"atol": atol, "rtol": rtol}) + "\n", encoding="utf-8")


def read(path: Path) -> npt.NDArray[Any]:
    """The array of a ``.pb`` file.

    Raises:
        VerifyError: it holds none.
    """
    import google.protobuf.message as protobuf
    import onnx
    from onnx import numpy_helper

    try:
        tensor = onnx.load_tensor(path)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise VerifyError(f"{path} has its values in another file")
        array: npt.NDArray[Any] = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError, MemoryError, OSError, protobuf.DecodeError) as error:
        raise VerifyError(f"{path} holds no tensor: {type(error).__name__}") from error
    return array
