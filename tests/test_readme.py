"""The examples of README and docs/ run as they stand, and their links and commands lead somewhere."""

import re
from pathlib import Path

import pytest

from projunn.cli import _parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "kernels/README.md", ROOT / "SECURITY.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def examples():
    for page, name in zip(PAGES, NAMES, strict=True):
        for number, source in enumerate(blocks(page, "python"), 1):
            marks = [pytest.mark.requires_cuda] * (".cuda()" in source)
            marks += [pytest.mark.requires_cpp] * ("torch.compile(" in source)
            yield pytest.param(name, source, id=f"{name}-{number}", marks=marks)


@pytest.mark.parametrize(("name", "source"), list(examples()))
def test_example_runs(name, source, capsys):
    exec(compile(source, name, "exec"), {})


def test_the_readme_has_three_journeys_in_short_examples():
    sources = blocks(PAGES[0], "python")
    assert all(len(source.splitlines()) <= 15 for source in sources)
    for word in ("UnitaryLinear", "torch.compile", "projunn.backend"):
        assert any(word in source for source in sources), word


def test_the_readme_has_fewer_than_1300_words():
    assert len(PAGES[0].read_text().split()) < 1300


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    for target, section in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        if section:
            assert section in sections(file), f"{target}#{section}"


def sections(page):
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_are_those_of_the_command_line(page):
    for line in "".join(blocks(page, "")).splitlines():
        if line.startswith("projunn "):
            _parser().parse_args(line.split("#")[0].split()[1:])
