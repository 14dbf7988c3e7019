"""The names of the files in an artifact."""

MODEL = "model.onnx"
"""The graph for every runtime, as PyTorch writes it, with the weights; in a file beside it where they are large."""
CPU_MODEL = "model.cpu.onnx"
"""The same rewritten for ONNX Runtime's CPU provider, where that changes anything. Its weights are those of ``MODEL``,
which it points into."""
MANIFEST = "manifest.json"
TASK = "task.json"
"""Of a task: how its networks make one label map."""
CARD = "README.md"
SBOM = "sbom.cdx.json"
SIGNATURE = "model.sig"
"""The one file beside the manifest that the manifest doesn't list: it is made after it. An artifact may have it."""
TEST_DATA = "test_data_set_0"
"""A folder, in the layout of the ONNX backend tests."""
TOLERANCES = "data.json"
"""The tolerances that ``onnx.backend.test`` reads."""


def input_file(number: int) -> str:
    """The file of the test data for the model's input of this number, from 0."""
    return f"{TEST_DATA}/input_{number}.pb"


def output_file(number: int) -> str:
    """The file of the test data for the model's output of this number, from 0."""
    return f"{TEST_DATA}/output_{number}.pb"


INPUT, OUTPUT = input_file(0), output_file(0)
"""The test data of the image, and of the segmentation."""
