"""Equations as MathML, made while the site is built: browsers need no script to show them.

They need a font made for mathematics, which not every machine has, so the site brings one along.
"""

import html
import re
from importlib.util import find_spec
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
# latex2mathml sets `a \log Z` without the spaces around a function
FUNCTION = "<mi>(?:exp|ln|log|max|min)</mi>"
TOUCHING = re.compile(rf"({FUNCTION})(?=<m(?!o))|(</m(?:i|n|sub|sup|subsup)>)(?={FUNCTION})")


def on_files(files, config):
    """Add the font, which `stylesheets/admarket.css` names."""
    font = Path(find_spec("ziamath").origin).parent / "fonts" / "STIXTwoMath-Regular.ttf"
    files.append(File.generated(config, "stylesheets/mathematics.ttf", abs_src_path=str(font)))
    return files


def on_page_content(content: str, page, **_) -> str:
    """Put MathML in the place of what the extension arithmatex has marked as an equation."""

    def converted(found: re.Match) -> str:
        try:
            return mathml(html.unescape(found[2]), display=found[1] == "div")
        except ValueError as error:
            raise PluginError(f"{page.file.src_uri}: {error}") from None

    return EQUATION.sub(converted, content)


def mathml(latex: str, display: bool) -> str:
    """The equation `latex` as a `<math>` element.

    Raises:
        ValueError: it holds something that the converter does not know, and would print as it is.
    """
    made = convert(latex.strip(), display="block" if display else "inline")
    unknown = re.search(r">(\\\w*|&)<", made)
    if unknown:
        raise ValueError(f"{unknown[1]!r} is not understood in the equation {latex.strip()!r}")
    return TOUCHING.sub(r'\g<0><mspace width="0.167em"/>', made)
