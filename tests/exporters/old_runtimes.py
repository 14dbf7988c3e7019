"""Runs a model in runtimes of years ago, in an environment of their own: ``old_runtimes.py RUNTIME MODEL IN OUT``."""

import sys

import numpy as np


def main(runtime: str, model: str, given: str, out: str) -> None:
    """Write what the runtime, ``onnxruntime`` or ``opencv``, gives for the array of a file."""
    x = np.load(given)
    if runtime == "onnxruntime":
        import onnxruntime

        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        y = session.run(None, {session.get_inputs()[0].name: x})[0]
        version = onnxruntime.__version__
    else:
        import cv2

        network = cv2.dnn.readNetFromONNX(model)
        network.setInput(x)
        y, version = network.forward(), cv2.__version__
    np.save(out, y)
    print(version)


if __name__ == "__main__":
    main(*sys.argv[1:])
