"""Ranks that resolved different knobs are found, on every rank, naming what differs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from broken_knobs import Cut
from test_identity import Changed

import latentknobs as lk
from latentknobs.errors import PluginError
from latentknobs.knobs.ranks import check_ranks, check_same, describe


def test_equal_ranks_pass_and_a_single_process_has_nothing_to_compare() -> None:
    space = lk.KnobSpace.of("temperature", "top_p")
    check_same([describe(space)] * 3)
    check_ranks(space)


def test_another_grid_is_named_with_both_spaces() -> None:
    a, b = lk.KnobSpace.of("top_p:0.5,1"), lk.KnobSpace.of("top_p:0.6,1")
    words = (
        "Rank 1 has KnobSpace(top_p[0.6, 1]; K=2 options, full product, order=transformers), rank 0 has KnobSpace(top_p[0.5, 1]"
    )
    with pytest.raises(PluginError, match=re.escape(words)):
        check_same([describe(a), describe(b)])


def test_other_behaviour_under_the_same_name_is_named_with_the_versions() -> None:
    a, b = lk.KnobSpace.of(Cut()), lk.KnobSpace.of(Changed())
    words = r"Rank 2 resolved other knobs: cut is this process \(behaviour .*\) there and this process \(.*\) on rank 0"
    with pytest.raises(PluginError, match=words):
        check_same([describe(a), describe(a), describe(b)])


def test_other_chosen_options_are_noticed() -> None:
    space = lk.KnobSpace.of("top_p:0.5,0.8,1")
    with pytest.raises(PluginError, match="Rank 1 resolved other knobs: other options"):
        check_same([describe(space.select([0, 1])), describe(space.select([0, 2]))])


RANK = """
import sys, torch, latentknobs as lk, torch.distributed as dist
from latentknobs.knobs.ranks import check_ranks
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
check_ranks(lk.KnobSpace.of("temperature"))
try:
    check_ranks(lk.KnobSpace.of("temperature", f"top_p:0.{5 + rank},1"))
except lk.errors.PluginError as error:
    print(error)
"""


@pytest.mark.slow
def test_two_real_processes_find_out_on_both_sides(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(r), str(tmp_path)], stdout=subprocess.PIPE, text=True) for r in (0, 1)
    ]
    told = [process.communicate(timeout=120)[0] for process in ranks]
    assert all("Rank 1 has KnobSpace(" in text for text in told)
