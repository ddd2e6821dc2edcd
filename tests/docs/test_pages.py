"""Pages do not lie: their examples run, and their tables list what the code has."""

import doctest
import re
import sys
import types
from pathlib import Path

import pytest
import torch

import latentknobs as lk
from latentknobs.conformance.knobs import CHECKS
from latentknobs.knobs import registry
from latentknobs.knobs.knob import API_VERSION, Stage

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = ["write-a-knob.md", "contract.md"]


def cells(page: str, first: str) -> list[list[str]]:
    """The table rows of a page whose first cell matches a pattern."""
    lines = [line for line in (DOCS / page).read_text().splitlines() if line.startswith("| ")]
    rows = [[cell.strip().strip("`") for cell in line.strip("| ").split(" | ")] for line in lines]
    return [row for row in rows if re.fullmatch(first, row[0])]


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_run(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    module = types.ModuleType(f"page_{page.split('.')[0].replace('-', '_')}")  # a real module, so that its classes can be pickled
    monkeypatch.setitem(sys.modules, module.__name__, module)
    test = doctest.DocTestParser().get_doctest((DOCS / page).read_text(), {}, page, page, 0)
    test.globs = vars(module)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    told: list[str] = []
    runner.run(test, out=told.append, clear_globs=False)
    assert test.examples and runner.summarize(verbose=False).failed == 0, "".join(told)


def test_the_page_shows_the_class_that_the_example_package_holds() -> None:
    page = [line[4:] for line in (DOCS / "write-a-knob.md").read_text().splitlines() if line.startswith((">>> ", "... "))]
    code = (DOCS / "examples/latentknobs-example/latentknobs_example/top_a.py").read_text()
    body = [line for line in code[code.index("class TopA") :].splitlines() if line]
    first = page.index(body[0])
    assert [line for line in page[first : first + len(body) + 2] if line][: len(body)] == body
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 20, "a new knob in twenty lines"


def test_the_test_file_of_the_example_package_has_at_most_thirty_lines() -> None:
    test = DOCS / "examples/latentknobs-example/tests/test_top_a.py"
    assert len(test.read_text().splitlines()) <= 30


def test_the_example_package_passes_its_own_conformance_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS / "examples/latentknobs-example"))
    from latentknobs_example.top_a import TopA

    lk.testing.check_knob(TopA())


SHIPPED = sorted(source.name for source in registry.sources() if source.distribution == "latentknobs")


def places() -> dict[str, str]:
    """The place of each shipped knob in each engine's chain."""
    grids = [{name: [registry.knob_class(name).neutral]} for name in _in_stage_order()]
    chains = [lk.KnobSpace.of(*grids, order=order).names for order in ("transformers", "vllm", "llama.cpp")]
    return {name: " / ".join(str(chain.index(name) + 1) for chain in chains) for name in SHIPPED}


def _in_stage_order() -> list[str]:
    """Names as the page lists them, which decides within a stage."""
    return [row[0] for row in cells("knobs.md", "|".join(SHIPPED))]


def test_the_table_lists_every_shipped_knob_with_its_neutral_value_stage_place_and_grid() -> None:
    rows = cells("knobs.md", "(?!knob$)[a-z_]+")
    assert sorted(row[0] for row in rows) == SHIPPED
    where = places()
    for name, does, neutral, stage, place, grid, source, equal in rows:
        knob = registry.resolve(name)
        assert (float(neutral), stage, place) == (knob.neutral, knob.stage, where[name]), name
        assert tuple(float(value) for value in grid.split(", ")) == knob.options, name
        assert does and re.search(r"(19|20)\d\d", source) and equal
        docs = sys.modules[type(knob).__module__].__doc__ + (type(knob).__doc__ or "")
        paper = re.search(r"\d{4}\.\d{5}|request \d+", source)
        assert paper and paper.group() in docs, f"{name} does not name its source {source} in its docstring"


def test_the_contract_page_has_a_promise_for_every_check() -> None:
    assert [row[-1] for row in cells("contract.md", ".*") if row[-1] in CHECKS] != []
    assert {row[-1] for row in cells("contract.md", ".*")} >= set(CHECKS)


def test_the_contract_page_describes_every_stage_with_its_knobs_and_the_version() -> None:
    by_stage = {row[0]: set(row[2].split(", ")) for row in cells("contract.md", "|".join(Stage)) if len(row) == 3}
    assert by_stage == {stage: {n for n in SHIPPED if registry.knob_class(n).stage == stage} for stage in Stage}
    assert f"This is version {API_VERSION} of the contract" in (DOCS / "contract.md").read_text()


ALL = [
    *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("[tp]*/*.md")), *sorted(DOCS.glob("examples/*/README.md")),
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md",
]  # fmt: skip


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_link_only_to_what_exists(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("page", [page for page in ALL if page.name != "log.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_pages_name_exist(page: Path) -> None:
    """A page may leave out the folder that it is about; the log names files as they were called on its day."""
    roots = [ROOT, ROOT / "latentknobs", ROOT / "tests", *(ROOT / "latentknobs").rglob("*/"), *(ROOT / "tests").rglob("*/")]
    roots += (ROOT / "benchmarks").rglob("*/")
    for name in set(re.findall(r"`([a-z_/-]+\.py)`", page.read_text())):
        assert any((root / name).exists() for root in roots), f"{page} names {name}"


def test_pages_need_no_global_state() -> None:
    assert torch.get_default_dtype() == torch.float32 and "top_a" not in registry.names()


def test_the_training_page_names_settings_and_rewards_that_exist() -> None:
    from latentknobs.config import fields
    from latentknobs.rewards import reward_names

    page = (DOCS / "training.md").read_text()
    flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-z]+(?:-[a-z]+)*)", page)}
    assert flags - {"help", "config", "resume", "num_processes", "nproc_per_node", "to"} <= set(fields())
    assert {row[0] for row in cells("training.md", r"`?[a-z_]+`?") if row[0] in reward_names()} == set(reward_names())
    first_cells = {row[0] for row in cells("training.md", r"[a-z_]+")} - {"name", "setting"}
    assert first_cells == set(reward_names())
