"""Notebooks as pages: their cells, and the outputs that are stored in them."""

from pathlib import Path

import nbformat
from mkdocs.structure.files import File


def on_files(files, config):
    """Add a page `NAME.ipynb.md` for every notebook; the notebook itself can be downloaded."""
    for file in [each for each in files if each.src_uri.endswith(".ipynb")]:
        content = as_markdown(Path(file.abs_src_path))
        files.append(File.generated(config, f"{file.src_uri}.md", content=content))
    return files


def on_page_markdown(markdown: str, page, **_) -> str:
    """Links to a notebook lead to its page; the pages of notebooks see to theirs themselves."""
    return markdown if page.file.src_uri.endswith(".ipynb.md") else _to_pages(markdown)


def as_markdown(path: Path) -> str:
    """The notebook as Markdown, with a line below its title that says what it is."""
    cells = nbformat.read(path, as_version=4).cells
    title, _, rest = cells[0].source.partition("\n")
    parts = [title, f"*This page is a notebook: [{path.name}]({path.name}).*", rest]
    for cell in cells[1:]:
        if cell.cell_type == "markdown":
            parts.append(_to_pages(cell.source))
        else:
            parts += _code(cell)
    return "\n\n".join(parts)


def _to_pages(markdown: str) -> str:
    return markdown.replace(".ipynb)", ".ipynb.md)")


def _code(cell) -> list[str]:
    shown = [f"```python\n{cell.source}\n```"]
    for output in cell.outputs:
        data = output.get("data", {})
        if "image/png" in data:
            shown.append(
                f"![{cell.metadata['alt']}](data:image/png;base64,{data['image/png'].strip()})"
            )
        else:
            text = output.get("text") or data.get("text/plain", "")
            shown.append(f"```text\n{text.rstrip()}\n```")
    return shown
