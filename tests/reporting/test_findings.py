"""Findings survive the disk; a run without them is no error, a damaged file is."""

from pathlib import Path

import pytest

from latentknobs.errors import RunError
from latentknobs.reporting import read_findings, write_findings


@pytest.mark.parametrize("findings", [[], ["One.", "Two \u2265 one."]])
def test_findings_survive_the_disk_and_leave_no_rest(tmp_path: Path, findings: list[str]) -> None:
    write_findings(tmp_path, findings)
    assert read_findings(tmp_path) == findings
    assert [path.name for path in tmp_path.iterdir()] == ["diagnostics.json"]


def test_a_run_that_was_never_looked_at_has_none(tmp_path: Path) -> None:
    assert read_findings(tmp_path) is None


@pytest.mark.parametrize("content", ["{", "[]", "{}", "3", "", '{"findings": "fine"}', '{"findings": [1]}', "[" * 100_000])
def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path, content: str) -> None:
    (tmp_path / "diagnostics.json").write_text(content)
    with pytest.raises(RunError, match=r"diagnostics\.json' is damaged.*Delete it"):
        read_findings(tmp_path)
