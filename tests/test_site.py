"""The documentation as a site: every page is in it, and it is built without a warning."""

import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import projunn

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def conf():
    spec = importlib.util.spec_from_file_location("conf", DOCS / "conf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_table_of_contents():
    listed = re.findall(r"^(\.\./)?([\w./-]+)$", (DOCS / "index.md").read_text(), re.MULTILINE)
    pages = {name for parent, name in listed if not parent}
    assert {page.stem for page in DOCS.glob("*.md")} - {"index"} <= pages
    for parent, name in listed:
        assert ((DOCS / parent / name).with_suffix(".md")).exists(), name


def test_the_three_journeys_have_15_lines():
    sources = re.findall(r"```python\n(.*?)```", (DOCS / "index.md").read_text(), re.DOTALL)
    assert len(sources) == 3
    assert all(len(source.splitlines()) <= 15 for source in sources)


def test_the_journeys_learn(capsys):
    """Which remembers, and which answers right, as the page says."""
    sources = re.findall(r"```python\n(.*?)```", (DOCS / "index.md").read_text(), re.DOTALL)
    for source in sources:
        exec(source, {})
    remembered, defects, certified = capsys.readouterr().out.splitlines()
    assert float(remembered.split(";")[0]) < 0.06
    found = re.findall(r"\d\.\d+e-\d+", defects)
    assert len(found) == 2
    assert all(float(defect) < 1e-6 for defect in found)
    right, sure = re.findall(r"(\d+)%", certified)
    assert int(right) > 90
    assert int(sure) > 20


def test_formulas_become_literal_blocks_and_asterisks_no_emphasis():
    docstring = inspect.getdoc(projunn.optim.SGD).splitlines()
    made = conf().as_rst(docstring)
    assert made[made.index("::") + 2].startswith("    B <- mu B")
    assert conf().as_rst(["shape (*batch, m), ``*x``, W_-k"]) == [r"shape (\*batch, m), ``*x``, W\_-k"]
    joined = conf().as_rst(["Args:", "    a, b,", "        c: as there."])
    assert joined == ["Args:", "    a, b, c: as there."]


@pytest.mark.slow
@pytest.mark.requires("sphinx", "furo", "myst_parser")
def test_the_site_is_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-c", "docs"]
    subprocess.run([*command, ".", str(tmp_path)], check=True, cwd=ROOT)
    reference = (tmp_path / "docs/api.html").read_text()
    for module in (projunn, projunn.nn, projunn.optim, projunn.init, projunn.models):
        public = getattr(module, "__all__", [n for n in vars(module) if n.endswith("_") and n[0] != "_"])
        for name in public:
            if callable(getattr(module, name)):
                assert f'id="{module.__name__}.{name}"' in reference, name
