"""A reward that is a plain function: its finished scores survive a kill, and are asked again when it has changed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from forked import finished, run_script

import latentknobs

HELPER = "def worth(text):\n    return float(len(text) * 7 % 11)\n"
ROOT = Path(latentknobs.__file__).parents[1]


@pytest.fixture
def folder(tmp_path):
    shutil.copy(Path(__file__).parent / "paid.py", tmp_path)
    (tmp_path / "paid_helper.py").write_text(HELPER)
    return tmp_path


def play(folder, name="run", kill_after=10**6, seed=None):
    """Exit code, what the process said, and the completions it was asked for.

    Args:
        seed: start Python itself, with this hash seed.
    """
    log, said, arguments = folder / "log", folder / "said", ("log", name, str(kill_after))
    before = len(log.read_text().splitlines()) if log.exists() else 0
    if seed is None:
        code = finished(run_script, folder / "paid.py", *arguments, log=said)
        return code, said.read_text(), log.read_text().splitlines()[before:]
    paths = [os.fspath(ROOT), os.fspath(ROOT / "plugins"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, folder / "paid.py", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr, log.read_text().splitlines()[before:]


def results(folder, name):
    files = [*(folder / name / "round-1" / "scores").iterdir(), folder / name / "round-1" / "pairs.jsonl",
             folder / name / "adapter" / "knob_head.safetensors"]  # fmt: skip
    return {file.name: file.read_bytes() for file in files}


def test_finished_scores_of_a_function_survive_a_kill_and_a_change_of_its_code_asks_again(folder):
    code, said, whole = play(folder, "whole")
    assert code == 0, said
    (folder / "log").unlink()

    code, _, first = play(folder, kill_after=17)  # in the third of four files
    assert code == -9 and 17 <= len(first) < len(whole)
    code, said, second = play(folder, seed="2")
    assert code == 0, said
    lost = len(first) + len(second) - len(whole)
    assert 0 < lost <= 8, "only the call that the kill cut off is repeated"
    assert results(folder, "run") == results(folder, "whole")
    assert play(folder)[2] == [], "a finished run asks nothing"

    (folder / "paid_helper.py").write_text(HELPER.replace("7", "5"))
    code, said, again = play(folder)
    assert (code, sorted(again)) == (0, sorted(whole)), said
    assert results(folder, "run")["00000.jsonl"] != results(folder, "whole")["00000.jsonl"]


@pytest.mark.slow
def test_what_cannot_be_read_is_named_and_asked_in_every_run(folder):
    script = folder / "paid.py"
    text = script.read_text().replace("def reward(prompts, completions, ", "def reward(prompts, completions, client=iter(()), ")
    script.write_text(text)
    asked = [play(folder) for _ in range(2)]
    assert len(asked[0][2]) == len(asked[1][2]) > 0
    for _, said, _ in asked:
        told = "the answers of 'reward' may depend on something that cannot be read, a part of a default of it, a tuple_iterator"
        assert told in " ".join(said.split())
