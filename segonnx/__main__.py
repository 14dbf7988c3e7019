"""``python -m segonnx``."""

from segonnx.cli import main

main()
