"""The README's examples run as they stand."""

import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_there_are_examples():
    assert len(EXAMPLES) >= 5
    assert all(len(example.splitlines()) <= 15 for example in EXAMPLES)


def numbered(number):
    compiles = "torch.compile" in EXAMPLES[number]
    return pytest.param(number, marks=[pytest.mark.requires_cpp] * compiles)


@pytest.mark.parametrize("number", [numbered(i) for i in range(len(EXAMPLES))])
def test_example(number, capsys):
    exec(compile(EXAMPLES[number], f"README example {number}", "exec"), {})


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (Path(__file__).parents[1] / target).exists(), target
