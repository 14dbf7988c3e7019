"""Names and notes of strangers are text in a card: parsers of Markdown, YAML and Python are the judges."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from segonnx.artifacts import card, layout
from segonnx.errors import one_line
from tests.conftest import SMALL

HOSTILE = (
    "<img src=x onerror=alert(1)> [x](javascript:alert(1)) ![y](http://example.org/y.png)",
    "a\n---\ntrusted: true\n# owned",
    "a: {b: [1, 2]} # c",
    "`x` `` y ``` z",
    "| a | b |\n|---|---|\n| owned | |",
    '"]); __import__("os").system("owned") #',
    "'\\",
    "\x1b]0;owned\x07\u202e",
    "- owned",
    "null",
)


@pytest.fixture(scope="module")
def content(exports: Path) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((exports / SMALL / layout.MANIFEST).read_bytes())
    return made


def hostile(content: dict[str, Any], text: str) -> dict[str, Any]:
    """The manifest with the text in every place that a stranger may fill."""
    made = copy.deepcopy(content)
    made["name"] = made["source"] = made["weights"]["source"] = made["weights"]["licence"] = text
    made["preprocessing"]["note"] = made["inputs"][0]["name"] = made["outputs"][0]["name"] = text
    made["labels"] = [{"name": text, "value": 0, "labels": [0]}]
    made["parameters"]["unused_reasons"] = {text: 1}
    made["parameters"]["published_figures"] = [{"text": text, "source": text, "num_classes": None}]
    made["inputs"][0]["shape"][0] = text
    made["network_only"], made["training"] = text, {"edited": [text, text]}
    made["parity"]["inputs"][0]["kind"] = made["parity"]["runtime"] = made["parity"]["reference"] = text
    return made


def ensemble(content: dict[str, Any], text: str) -> str:
    """The card of an ensemble with the text in every place that a stranger may fill."""
    member = hostile(content, text)
    made = {
        "name": text,
        "source": text,
        "weights": {"source": text, "licence": text},
        "members": [{"folder": "members/0-2d", "averaged": True, "previous": None}],
        "inference": {"postprocessing": [{"keep_largest_component": [1, 2]}]},
    }
    return card.render_ensemble(made, {"members/0-2d": member})


def kinds(text: str) -> list[str]:
    """What Markdown sees in a card below its front matter: blocks and, within text, markup."""
    body = text.split("---\n", 2)[2]
    found = []
    for block in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(body):
        found.append(block.type)
        found += [f"  {part.type}" for part in block.children or [] if part.type != "text"]
    return found


@pytest.mark.parametrize("text", HOSTILE)
def test_a_stranger_s_text_changes_no_markup(text: str, content: dict[str, Any]) -> None:
    made = card.render(hostile(content, text))
    assert kinds(made) == kinds(card.render(hostile(content, "plain text")))
    both = made + ensemble(content, text)
    assert kinds(ensemble(content, text)) == kinds(ensemble(content, "plain text"))
    assert "\u202e" not in both and "\x1b" not in both


@pytest.mark.parametrize("text", HOSTILE)
def test_the_front_matter_says_what_it_says(text: str, content: dict[str, Any]) -> None:
    for made in (card.render(hostile(content, text)), ensemble(content, text)):
        front = yaml.safe_load(made.split("---\n")[1])
        assert front.keys() == {"library_name", "license", "tags"}
        assert isinstance(front["license"], str)
        assert front["license"] == one_line(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_the_example_is_a_program_that_names_the_tensors(text: str, content: dict[str, Any]) -> None:
    code = card.render(hostile(content, text)).split("```python\n")[1].split("\n```")[0]
    asked: dict[str, Any] = {}

    class Session:
        def run(self, outputs: list[str], inputs: dict[str, Any]) -> Any:
            asked.update(outputs=outputs, inputs=list(inputs))
            import numpy as np

            return [np.zeros((1, 2))]

    lines = [line for line in code.splitlines() if line.startswith(("x =", "labels ="))]
    import numpy as np

    exec("\n".join(lines), {"session": Session(), "np": np})
    assert asked == {"outputs": [text], "inputs": [text]}


def test_plain_names_are_written_plainly(content: dict[str, Any]) -> None:
    made = card.render(content)
    assert made.startswith(f"---\nlibrary_name: onnx\nlicense: {content['weights']['licence']}\ntags: [image-")
    assert 'session.run(["logits"], {"input": x})' in made
    assert f"\n# {SMALL}\n" in made
