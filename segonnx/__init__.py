"""segonnx: segmentation networks as verified ONNX artifacts, and honest timings of the runtimes that run them."""

__version__ = "0.1.0"
