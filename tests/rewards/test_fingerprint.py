"""A callable is the same one in every process, another one after any change that its answers may depend on, or not to be told."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from latentknobs.rewards import resolve_rewards, reward_identity
from latentknobs.rewards.fingerprint import fingerprint
from latentknobs.rewards.modules import UnreadableError

ROOT = Path(__file__).parents[2]
HELPER = "LIMIT = 3\nWORDS = {'a', 'b', 'c', 'd'}\ndef worth(text):\n    return len(text) if text not in WORDS else LIMIT\n"
LATE = "def late(text):\n    return 1.0\n"
MINE = """
import dataclasses, enum, functools, re
from pathlib import Path
import numpy as np
import torch
import helper
from helper import worth

BONUS = 2.0
TABLE = {"x": [1, (2, None)], "y": {3, "z"}}
PATTERN = re.compile("a+")

class Mood(enum.Enum):
    GOOD = 1
    BAD = "bad"

@dataclasses.dataclass
class Setting:
    mood: Mood = Mood.GOOD
    names: list = dataclasses.field(default_factory=lambda: ["n"])

def plain(prompts, completions, scale=1.0, *, shift=0.0, **columns):
    from late import late
    return [scale * worth(text) + helper.LIMIT * BONUS + shift + late(text) for text in completions if PATTERN and TABLE]

def made(factor):
    def nested(prompts, completions, **columns):
        return [factor * len(text) for text in completions]
    return nested

class Judge:
    share = 0.5
    def __init__(self, weight=1.0):
        self.weight, self.setting, self.me, self.name = weight, Setting(), self, "judge"
        self.vector_F, self.matrix = torch.tensor([1.0, 2.0], dtype=torch.bfloat16), np.eye(2)
        self.layer = torch.nn.Linear(2, 1)
        torch.nn.init.ones_(self.layer.weight), torch.nn.init.zeros_(self.layer.bias)
    def __call__(self, prompts, completions, **columns):
        return [self.judge(text) for text in completions]
    def judge(self, text):
        return self.weight * len(text)

nested, judge, method = made(3), Judge(), Judge().judge
shorter = lambda prompts, completions, **columns: [-len(text) for text in completions]
part = functools.partial(plain, scale=2.0)
slow = functools.lru_cache(plain)
"""
NAMES = ["plain", "nested", "judge", "method", "shorter", "part", "slow"]
SHOW = """
import sys
sys.path.insert(0, sys.argv[1])
from latentknobs.rewards.fingerprint import fingerprint
import mine
print(*(fingerprint(getattr(mine, name)) for name in sys.argv[2:]))
"""


def python(*arguments, seed="0"):
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture
def folder(tmp_path):
    for name, text in (("mine", MINE), ("helper", HELPER), ("late", LATE)):
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


def test_every_kind_of_callable_is_the_same_in_processes_that_order_sets_differently(folder):
    found = [python("-c", SHOW, folder, *NAMES, seed=seed) for seed in ("1", "2")]
    assert found[0] == found[1] and len(set(found[0])) == len(NAMES)


def test_a_change_of_any_file_that_is_reached_changes_it(folder):
    light = MINE.partition("def made")[0].replace("import numpy as np\nimport torch\n", "")  # five times torch is ten seconds
    (folder / "mine.py").write_text(light)

    def now():
        return python("-c", SHOW, folder, "plain")[0]

    found = [now()]
    changes = [
        ("mine", "BONUS = 2.0", "BONUS = 2.5"), ("helper", "LIMIT = 3", "LIMIT = 4"), ("late", "1.0", "2.0"),
        ("helper", "len(text)", "len(text) + 1"),
    ]  # fmt: skip
    for name, old, new in changes:
        file = folder / f"{name}.py"
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new, 1))
        found.append(now())
    assert len(set(found)) == len(changes) + 1


def script(folder, text):
    (folder / "main.py").write_text(textwrap.dedent(text) + "\nfrom latentknobs.rewards.fingerprint import fingerprint\n"
                                    "print(fingerprint(reward))\n")  # fmt: skip
    return python(folder / "main.py")[0]


def test_a_function_of_the_script_itself(folder):
    found = [script(folder, f"import late\ndef reward(p, c): return [{n}.0 for _ in c]") for n in (1, 2, 1)]
    assert found[0] == found[2] != found[1]
    (folder / "late.py").write_text("# another one\n")
    assert script(folder, "import late\ndef reward(p, c): return [1.0 for _ in c]") != found[0]


# Code without a file: only what is read from the objects themselves can tell.
CODE = """
import functools
import numpy as np, torch
LIMIT = 3
def helper(text): return len(text) + LIMIT
def made(factor=2):
    def nested(prompts, completions, scale=1.0, *, shift=0.0, **columns):
        return [(lambda text: factor * scale * helper(text) + shift)(text) for text in completions]
    return nested
class Base:
    bias = 1
    def judge(self, text): return 5
    @property
    def loud(self): raise RuntimeError("nobody may ask")
    def __getattr__(self, name): raise RuntimeError("nobody may ask")
    def __reduce__(self): raise RuntimeError("nobody may ask")
    def __eq__(self, other): raise RuntimeError("nobody may ask")
    def __repr__(self): raise RuntimeError("nobody may ask")
    def __iter__(self): raise RuntimeError("nobody may ask")
class Judge(Base):
    __slots__ = ("slot",)
    def __init__(self):
        self.slot, self.data, self.array, self.inner = "s", torch.tensor([1.0, 2.0]), np.array([1, 2]), {"a": [1, {2, 3}]}
    def __call__(self, prompts, completions, **columns): return [self.judge(text) for text in completions]
reward = functools.partial(made(), scale=4.0)
judge = Judge()
"""


def executed(old="", new=""):
    assert old in CODE
    space: dict = {"__name__": "typed_in"}
    exec(CODE.replace(old, new, 1), space)
    return fingerprint(space["reward"]), fingerprint(space["judge"])


def test_code_without_a_file_is_the_same_when_it_is_the_same():
    assert executed() == executed("import functools\n", "import functools\n\n# a comment, which is not in the code\n")


@pytest.mark.parametrize(("old", "new"), [
    ("* scale", "/ scale"),
    ("scale=1.0", "scale=1.5"), ("shift=0.0", "shift=0.5"), ("factor=2", "factor=3"), ("LIMIT = 3", "LIMIT = 4"),
    ("len(text) + LIMIT", "len(text) - LIMIT"), ("scale=4.0", "scale=4"),
])  # fmt: skip
def test_every_part_of_a_function_counts(old, new):
    assert executed(old, new)[0] != executed()[0] and executed(old, new)[1] == executed()[1]


@pytest.mark.parametrize(("old", "new"), [
    ("return 5", "return 6"), ("bias = 1", "bias = 2"), ('"s"', '"t"'), ("[1.0, 2.0]", "[1.0, 2.5]"),
    ("np.array([1, 2])", "np.array([1.0, 2])"),
    ("{2, 3}", "{2, 4}"), ("[1, {", "[True, {"), ("self.judge(text)", "self.judge(text[1:])"),
])  # fmt: skip
def test_every_part_of_an_object_counts(old, new):
    assert executed(old, new)[1] != executed()[1] and executed(old, new)[0] == executed()[0]


def test_a_value_that_was_set_in_a_module_of_the_user_counts(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))
    import helper  # type: ignore[import-not-found]
    import mine  # type: ignore[import-not-found]

    before = fingerprint(mine.plain)
    monkeypatch.setattr(helper, "LIMIT", 30)
    assert fingerprint(mine.plain) != before
    for name in ("mine", "helper"):
        monkeypatch.delitem(sys.modules, name)


def test_the_content_of_a_path_counts_and_that_of_a_file_named_by_a_text_does_not(tmp_path):
    def identity(file):
        return fingerprint(lambda prompts, completions: file)

    file, found = tmp_path / "data.txt", []
    for content in ("1", "2"):
        file.write_text(content)
        found += [identity(file), identity(str(file))]
    assert found[0] != found[2] and found[1] == found[3]


class SomeClient:
    def __init__(self, open_file):
        self.connection = open_file


class Asks:
    def __init__(self, client):
        self.client = client

    def __call__(self, prompts, completions, **columns):
        return [1.0] * len(completions)


STREAM = open(os.devnull)  # noqa: SIM115


def uses_a_global(prompts, completions):
    return STREAM


def test_what_cannot_be_read_is_named(tmp_path):
    client = SomeClient(STREAM)

    def captured(prompts, completions):
        return client

    for function, told in (
        (Asks(client), r"^its attribute `client.connection`, a TextIOWrapper$"),
        (Asks(iter([1])), r"^its attribute `client`, a list_iterator$"),
        (Asks(subprocess.Popen), None),  # a class of the standard library, with nothing in it
        (Asks(n for n in ()), r"^its attribute `client`, a generator$"),
        (uses_a_global, r"^the global `STREAM`, a TextIOWrapper$"),
        (captured, r"^its variable `client.connection`, a TextIOWrapper$"),
        (STREAM.read, r"^the callable itself, a TextIOWrapper$"),
    ):
        if told is None:
            assert fingerprint(function)
            continue
        with pytest.raises(UnreadableError, match=told):
            fingerprint(function)
        (part,) = resolve_rewards(function).parts
        assert part.identity is None and part.unread is not None and reward_identity(function) is None


def test_a_lock_of_a_library_object_is_told_as_that_object():
    import threading

    with pytest.raises(UnreadableError, match=r"^its attribute `client`, an Event$"):
        fingerprint(Asks(threading.Event()))


def test_what_is_logged_changes_nothing():
    import logging

    assert fingerprint(Asks(logging.getLogger("reward")))


def test_a_version_wins_over_what_can_and_cannot_be_read():
    judges = [Asks(SomeClient(STREAM)), Asks(1), Asks(2)]
    for judge in judges:
        judge.version = "1"
    assert len({reward_identity(judge) for judge in judges}) == 1 and reward_identity(judges[0]) is not None


def test_what_is_nested_too_deeply_is_said_and_no_crash():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(UnreadableError, match="nested too deeply"):
        fingerprint(Asks(deep))


SAY = """
from latentknobs.rewards.modules import UnreadableError
try:
    fingerprint(mine.plain)
except UnreadableError as error:
    print(error)
"""


def test_a_module_whose_file_is_broken_is_named(folder):
    (folder / "late.py").write_text("def (:\n")
    code = SHOW[: SHOW.index("\nprint")] + SAY
    assert " ".join(python("-c", code, folder)) == "the module `late`, whose file is not valid Python"
