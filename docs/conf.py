"""The documentation as a site: ``make docs`` builds it into ``site/``.

The source folder is the repository, because pages link to README, CONTRIBUTING and the notes beside the
code.  Docstrings are written for `help()`: formulas are indented, and ``*batch`` is an axis.  `as_rst`
makes reStructuredText of them.
"""

import inspect
import re
from typing import Any

import projunn

project, author, version = "projunn", "the projunn authors", projunn.__version__
release, copyright = version, "2026, the projunn authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.intersphinx"]
root_doc = "docs/index"
include_patterns = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "kernels/README.md", "docs/**.md"),
    "examples/README.md",
]
html_theme, html_title = "furo", f"projunn {version}"
html_theme_options = {"navigation_with_keys": True}
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
# Links to sources and folders, which are no pages.
suppress_warnings = ["myst.xref_missing"]
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_custom_sections = [("Shape", "params_style"), ("Class attributes", "Attributes")]
napoleon_use_ivar = True
add_module_names = False
intersphinx_mapping: dict[str, Any] = {}  # a build needs no network

_SECTION = re.compile(r"^[A-Z][a-z]+( attributes)?:$")


def as_rst(lines: list[str]) -> list[str]:
    """A docstring with its formulas as literal blocks, and asterisks that are no emphasis escaped."""
    text = re.sub(
        r"^(    [\w, ]+),\n {8,}", r"\1, ", "\n".join(lines), flags=re.MULTILINE
    )  # names of arguments
    lines, made = text.split("\n"), list[str]()
    section, literal = False, False
    for i, line in enumerate(lines):
        indented = line.startswith("    ")
        section = section or bool(_SECTION.match(line))
        before = lines[i - 1] if i else ""
        if not section and indented and not before.strip():
            made += ["::", ""]
            literal = True
        elif line.strip() and not indented:
            literal = False
        made.append(line if literal else _escaped(line))
    return made


def _escaped(line: str) -> str:
    """Asterisks and bars outside of literals are themselves, and an underscore ends no link."""
    parts = re.split(r"(``.*?``|`.*?`)", line)
    marks = r"(?<!\\)([*|]|(?<=\w)_(?!\w))"
    return "".join(p if p.startswith("`") else re.sub(marks, r"\\\1", p) for p in parts)


def _process(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = as_rst(lines)


def _skip(app: Any, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Methods of tensors in another guise are PyTorch's to document."""
    return True if inspect.ismethoddescriptor(getattr(thing, "__wrapped__", None)) else None


def setup(app: Any) -> None:
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-docstring", _process, priority=100)  # before napoleon
