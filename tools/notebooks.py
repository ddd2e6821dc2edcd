"""Makes a notebook of each tutorial and runs it once: `python -m tools.notebooks docs/tutorials` (`make notebooks`)."""

import os
import sys
import tempfile
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

os.environ.setdefault("OMP_NUM_THREADS", "1")
LINES = 40  # of one output that are kept


def write(page: Path) -> Path:
    """Runs the Python of a page in an empty folder and writes the notebook beside the page."""
    notebook = jupytext.read(page)
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
    """Every page of a folder, the index aside."""
    for page in sorted(Path(sys.argv[1]).glob("*.md")):
        if page.stem != "index":
            print(write(page))


if __name__ == "__main__":
    main()
