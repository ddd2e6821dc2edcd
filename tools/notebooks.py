"""Makes a notebook of each tutorial and runs it once: `python -m tools.notebooks docs/tutorials` (`make notebooks`)."""

import os
import sys
import tempfile
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

os.environ.setdefault("OMP_NUM_THREADS", "1")
HEADER = "---\njupyter:\n  kernelspec:\n    display_name: Python 3\n    language: python\n    name: python3\n---\n\n"
LINES = 40  # of one output that are kept


def write(page: Path) -> Path:
    """Runs the Python of a page in an empty folder and writes the notebook beside the page."""
    notebook = jupytext.reads(HEADER + page.read_text(encoding="utf-8"), fmt="md")
    notebook.cells = [_text(cell) if cell.source.startswith("%%") else cell for cell in notebook.cells]
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [kept for kept in map(_short, cell.outputs) if kept is not None]
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path = page.with_suffix(".ipynb")
    nbformat.write(nbformat.validator.normalize(notebook)[1], path)
    return path


def _text(cell: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A block of another language, which jupytext makes a magic cell, as text: shell commands are for the reader."""
    kind, _, code = cell.source.partition("\n")
    return nbformat.v4.new_markdown_cell(f"```{kind.removeprefix('%%')}\n{code}\n```")


def _short(output: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    """An output without progress bars, cut to its last lines."""
    if output.output_type == "stream" and output.name == "stderr":
        return None
    data = output if output.output_type == "stream" else output.get("data", {})
    key = "text" if output.output_type == "stream" else "text/plain"
    if key in data:
        lines = data[key].splitlines(keepends=True)
        data[key] = "".join((["...\n"] if len(lines) > LINES else []) + lines[-LINES:])
    return output


def main() -> None:
    """Every page of a folder, the index aside, or the pages named."""
    pages = [Path(name) for name in sys.argv[1:]]
    for page in sorted(pages[0].glob("*.md")) if pages[0].is_dir() else pages:
        if page.stem != "index":
            print(write(page))


if __name__ == "__main__":
    main()
