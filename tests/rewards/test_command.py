"""A program as a reward, with real processes: some well behaved, some not."""

import json
import shlex
import sys
import time
from pathlib import Path

import pytest

from latentknobs.errors import BrokenRewardError, ConfigError, RewardError
from latentknobs.rewards import Command, ScoreCache, resolve_reward, resolve_rewards, score_all

READ = "import json, os, subprocess, sys, time\nrows = [json.loads(line) for line in sys.stdin]\n"
EACH = READ + "for row in rows:\n    text = row['completion']\n"


def program(code, **settings):
    """A reward that runs Python code."""
    return Command(f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}", **settings)


def scores(reward, texts, **columns):
    return score_all(reward, ["p"] * len(texts), texts, columns, whole=False)


def values(reward, texts, **columns):
    return [score.value for score in scores(reward, texts, **columns)]


def starts(tmp_path):
    """Code that leaves a line for every start of the program, and a function to count them."""
    file = tmp_path / "starts"
    return f"open({str(file)!r}, 'a').write('x')\n", lambda: len(file.read_text())


def is_alive(pid):
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rsplit(") ")[1][0] != "Z"


def test_one_process_for_a_batch_and_every_form_of_answer(tmp_path):
    note, count = starts(tmp_path)
    code = note + EACH + "    print({'n': 'null', 's': json.dumps({'score': 2})}.get(text, len(text)))"
    reward = program(code, batch_size=3)
    assert values(reward, ["aaaa", "n", "s", "", "ü\u2028\n"]) == [4.0, None, 2.0, 0.0, 3.0]
    assert count() == 2


def test_the_program_sees_prompts_messages_and_columns(tmp_path):
    seen = tmp_path / "seen"
    code = READ + f"open({str(seen)!r}, 'w').write(json.dumps(rows))\nprint('1\\n2')"
    prompts = ["plain", ({"role": "user", "content": "hi"},)]
    score_all(program(code), prompts, ["a", "b"], {"answer": [3, None]})
    reply = [{"role": "assistant", "content": "b"}]
    assert json.loads(seen.read_text()) == [
        {"prompt": "plain", "completion": "a", "answer": 3},
        {"prompt": [{"role": "user", "content": "hi"}], "completion": reply, "answer": None},
    ]


def test_no_shell_ever_sees_the_command(tmp_path):
    reward = Command(f"{shlex.quote(sys.executable)} -c 'print(1)' '; touch {tmp_path}/pwned' $(touch {tmp_path}/pwned) > out")
    assert values(reward, ["a"]) == [1.0]
    assert list(tmp_path.iterdir()) == []


def test_a_crash_is_narrowed_down_and_shows_the_last_line_of_stderr():
    code = EACH + "    print(len(text), flush=True)\n    assert text != 'bb', 'no bb'"
    found = scores(program(code), ["a", "bb", "ccc"])
    assert [s.value for s in found] == [1.0, None, 3.0]
    assert found[1].error == "It ended with exit code 1: AssertionError: no bb"


def test_a_program_that_is_killed_or_says_nothing():
    code = EACH + "    if text == 'k': os.kill(os.getpid(), 9)\n    if text == 'q': sys.exit(3)\n    print(1)"
    found = scores(program(code), "akq")
    assert found[1].error == "It was killed by signal 9: nothing was printed on standard error."
    assert found[2].error == "It ended with exit code 3: nothing was printed on standard error."


def test_what_hangs_is_killed_and_costs_only_its_own_score():
    code = EACH + "    time.sleep(60 * (text == 'slow'))\n    print(len(text))"
    started = time.monotonic()
    found = scores(program(code, timeout=2.0), ["a", "slow", "ccc"])
    assert [s.value for s in found] == [1.0, None, 3.0]
    assert found[1].error == "It took longer than its timeout of 2 s."
    assert time.monotonic() - started < 20


def test_what_only_together_takes_too_long_is_scored_one_by_one():
    assert values(program(EACH + "    time.sleep(0.8)\n    print(len(text))", timeout=2.0), ["a", "bb", "ccc"]) == [1, 2, 3]


def test_garbage_costs_its_own_line_only():
    found = scores(program(EACH + "    print({'a': 'good', 'b': '{\"a\": 1}', 'c': 'true', 'd': 'NaN'}.get(text, 1))"), "abcde")
    assert [s.value for s in found] == [None] * 4 + [1.0]
    assert found[0].error == "It printed 'good', where a number, null or {\"score\": number} was expected."
    assert "nan, which is not a finite number" in found[3].error


def test_another_number_of_lines_is_never_guessed_at():
    chatty = program(READ + "print('loading...')\nfor row in rows: print(1)")
    with pytest.raises(BrokenRewardError, match=r"on each of 3 completions. The last: It printed 2 lines where 1 were"):
        scores(chatty, "abc")


def test_a_program_that_never_worked_ends_the_run_and_one_that_did_does_not():
    code = EACH + "    assert text == 'good', 'bad text'\n    print(1)"
    with pytest.raises(BrokenRewardError, match=r"failed on each of 2 completions. The last: .*AssertionError: bad text"):
        scores(program(code, batch_size=2), ["x", "y", "good"])
    assert values(program(code, batch_size=2), ["good", "good", "x", "y"]) == [1.0, 1.0, None, None]


def test_processes_it_leaves_behind_keep_nobody_waiting_and_are_ended(tmp_path):
    pid = tmp_path / "pid"
    child = f"child = subprocess.Popen(['sleep', '60'])\nopen({str(pid)!r}, 'w').write(str(child.pid))\n"
    started = time.monotonic()
    assert values(program(READ + child + "print(1)"), ["a"]) == [1.0]  # the child holds our end of stdout open
    assert time.monotonic() - started < 10
    _gone(int(pid.read_text()))
    assert values(program(READ + child + "time.sleep(60)", timeout=2.0), ["a"]) == [None]
    _gone(int(pid.read_text()))


def _gone(pid):
    until = time.monotonic() + 5
    while is_alive(pid):
        assert time.monotonic() < until, "still running"
        time.sleep(0.02)


def test_an_interrupt_ends_the_program_too(tmp_path, monkeypatch):
    pid = tmp_path / "pid"
    reward = program(f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)")

    def interrupted(self, timeout=None):
        while not (pid.exists() and pid.read_text()):
            time.sleep(0.01)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr("subprocess.Popen.wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        values(reward, ["a"])
    _gone(int(pid.read_text()))


def test_a_program_that_does_not_read_is_no_trouble():
    assert values(program("print('1\\n' * 500, end='')", batch_size=500), ["x" * 10_000] * 500) == [1.0] * 500


def test_a_column_of_the_same_name_is_refused():
    with pytest.raises(RewardError, match="cannot pass on a column 'completion'"):
        scores(program("print(1)"), ["a"], completion=["x"])


def test_a_program_that_goes_away_is_an_error(tmp_path):
    script = tmp_path / "score.sh"
    script.write_text("#!/bin/sh\necho 1\n")
    script.chmod(0o700)
    reward = Command(str(script))
    assert values(reward, ["a"]) == [1.0]
    script.unlink()
    with pytest.raises(BrokenRewardError, match="cannot be started: No such file"):
        values(reward, ["a"])


def test_by_name_with_its_settings(tmp_path):
    (tmp_path / "score.py").write_text("import sys\nfor line in sys.stdin: print(len(sys.argv), flush=True)\n")
    reward = resolve_reward(f"command:run={sys.executable} {tmp_path}/score.py a,b --c,timeout=5,batch_size=2")
    assert (reward.timeout, reward.batch_size) == (5, 2)
    assert values(reward, ["x"]) == [3.0]


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("command:run=", "run='', but there is no such program"),
        ("command:run=no-such-program-here x", "no such program. Give one that can be started"),
        ("command:run=python 'score.py", "cannot be split into words: No closing quotation"),
        ("command:run=true,timeout=0", "timeout=0: give a number of seconds"),
        ("command:run=true,timeout=inf", "timeout=inf"),
        ("command:run=true,timeout=soon", "timeout='soon'"),
        ("command:run=true,batch_size=0", "batch_size=0: give a whole number"),
        ("command:timeout=3", "cannot be created: .*'run'"),
    ],
)
def test_wrong_settings_are_named(spec, told):
    with pytest.raises(ConfigError, match=told):
        resolve_reward(spec)


def test_an_edited_script_is_asked_again_and_an_unchanged_one_is_not(tmp_path):
    script = tmp_path / "score.py"
    note, count = starts(tmp_path)
    script.write_text(note + "print(1)")
    spec = f"command:run={sys.executable} {script}"
    before = resolve_rewards(spec).key
    for wanted in (1, 1):
        cache = ScoreCache(tmp_path / "cache.jsonl")
        assert [s.value for s in score_all(spec, ["p"], ["a"], {}, cache=cache)] == [1.0]
        assert count() == wanted
    script.write_text(note + "print(2)")
    assert resolve_rewards(spec).key != before != resolve_rewards(f"{spec} --strict").key
    assert [s.value for s in score_all(spec, ["p"], ["a"], {}, cache=ScoreCache(tmp_path / "cache.jsonl"))] == [2.0]


def test_a_time_limit_is_not_remembered(tmp_path):
    flag = tmp_path / "flag"
    code = READ + f"print(1) if os.path.exists({str(flag)!r}) else time.sleep(60)"
    script = tmp_path / "score.py"
    script.write_text(code)
    spec = f"command:run={sys.executable} {script},timeout=2"
    cache = ScoreCache(tmp_path / "cache.jsonl")
    assert score_all(spec, ["p"], ["a"], {}, cache=cache, whole=False)[0].value is None
    flag.touch()
    assert score_all(spec, ["p"], ["a"], {}, cache=cache)[0].value == 1.0


def test_every_character_goes_in_and_comes_out(tmp_path):
    code = EACH + "    print(json.dumps({'score': len(text), 'why': text}, ensure_ascii=False))"
    reward = program(f"import sys\nsys.stdout.reconfigure(encoding='utf-8', errors='surrogatepass')\n{code}")
    odd = ["\u2028\x0b\x85", "caf\u00e9 \U0001f642", "\ud83d", "a\tb"]
    assert values(reward, odd, note=["\udc00"] * 4) == [3.0, 6.0, 1.0, 3.0]


def test_tokens_are_not_passed_on(tmp_path):
    seen = tmp_path / "seen"
    code = READ + f"open({str(seen)!r}, 'w').write(json.dumps(rows))\nprint(1)"
    score_all(program(code), ["p"], ["a"], {"n": [1]}, completion_ids=[[5]])
    assert json.loads(seen.read_text()) == [{"prompt": "p", "completion": "a", "n": 1}]


@pytest.mark.parametrize("value", [object(), {1, 2}, b"x", {(1, 2): 3}])
def test_a_column_that_json_cannot_hold_is_named(value):
    with pytest.raises(RewardError, match=r"cannot pass on the column 'when', e\.g\. .*Write text or numbers"):
        scores(program(EACH + "    print(1)"), ["a", "b"], n=[1, 2], when=[3, value])
