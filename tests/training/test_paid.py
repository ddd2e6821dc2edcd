"""A reward that is a plain function: a resumed run keeps its finished scores, and a new run computes them again."""

import shutil
from pathlib import Path

import pytest
from forked import finished, run_script


@pytest.fixture
def folder(tmp_path):
    shutil.copy(Path(__file__).parent / "paid.py", tmp_path)
    return tmp_path


def play(folder, name="run", kill_after=10**6, resume=False):
    """Exit code, what the process said on one line, and the completions that the reward scored."""
    log, said, arguments = folder / "log", folder / "said", ("log", name, str(kill_after), "resume" if resume else "new")
    before = len(log.read_text().splitlines()) if log.exists() else 0
    code = finished(run_script, folder / "paid.py", *arguments, log=said)
    return code, " ".join(said.read_text().split()), log.read_text().splitlines()[before:]


def results(folder, name):
    files = [*(folder / name / "round-1" / "scores").iterdir(), folder / name / "round-1" / "examples.jsonl",
             folder / name / "adapter" / "knob_head.safetensors"]  # fmt: skip
    return {file.name: file.read_bytes() for file in files}


def test_finished_scores_of_a_function_survive_a_kill_where_the_run_is_resumed(folder):
    code, said, whole = play(folder, "whole")
    assert code == 0, said
    (folder / "log").unlink()

    code, _, first = play(folder, kill_after=17)  # in the third of four files
    assert code == -9 and 17 <= len(first) < len(whole)
    code, said, second = play(folder, resume=True)
    assert code == 0, said
    assert said.count("The reward 'reward' has no `version`: finished scores are reused because this run is resumed.") == 1
    lost = len(first) + len(second) - len(whole)
    assert 0 < lost <= 8, "only the call that the kill cut off is repeated"
    assert results(folder, "run") == results(folder, "whole")
    assert play(folder, resume=True)[2] == [], "a finished run that is resumed scores nothing"

    code, said, again = play(folder)
    assert (code, sorted(again)) == (0, sorted(whole)), said
    sentence = "The reward 'reward' has no `version`: every new run computes its scores again, and resume=True keeps those"
    assert said.count(sentence) == 1


@pytest.mark.parametrize("resume", [False, True])
def test_a_function_of_another_name_is_another_reward(folder, resume):
    assert play(folder)[0] == 0
    script = folder / "paid.py"
    script.write_text(script.read_text().replace("def reward(", "def other(").replace("reward=reward", "reward=other"))
    code, said, again = play(folder, resume=resume)
    assert code == 0 and len(again) == 30, said
