"""Every tutorial runs from top to bottom: its Python blocks in one namespace and an empty folder. `make docs` runs these."""

import re
import sys
import types
from pathlib import Path

import pytest

TUTORIALS = Path(__file__).parents[2] / "docs/tutorials"
PAGES = sorted(page.name for page in TUTORIALS.glob("*.md") if page.stem != "index")


@pytest.mark.tutorial
@pytest.mark.parametrize("page", PAGES)
def test_a_tutorial_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (TUTORIALS / page).read_text(encoding="utf-8")
    module = types.ModuleType(f"tutorial_{page[:-3].replace('-', '_')}")  # a real module, whose classes have a home
    monkeypatch.setitem(sys.modules, module.__name__, module)
    blocks = [match for match in re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S)]
    assert blocks
    for block in blocks:
        line = text[: block.start()].count("\n") + 1
        exec(compile("\n" * line + block[1], str(TUTORIALS / page), "exec"), vars(module))
