"""A finished run made by hand: no model, three tasks, and texts that want to break HTML."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentknobs.config import make_config, write_yaml
from latentknobs.data.prompts import Prompt
from latentknobs.data.rollouts import Rollout, write_lines
from latentknobs.evaluation.report import GREEDY, HEAD, MIXTURE, Report
from latentknobs.knobs.space import KnobSpace
from latentknobs.reporting import write_samples

TASKS = ("math", "stories", "<b>bold</b> & $x^2$")
WORDS = ("", "</s>", " the", " cat", " <script>alert(1)</script>", " a & b", "\n", " $y_1$")
END = 1


class WordTokenizer:
    """Each id is one word; id 1 ends the sequence."""

    all_special_ids = (END,)

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(WORDS[i] for i in ids)

    def convert_ids_to_tokens(self, token: int) -> str:
        return WORDS[token]


@pytest.fixture(scope="session")
def space() -> KnobSpace:
    return KnobSpace.of("temperature:0,0.5,1", "top_p:0.5,1")


@pytest.fixture(scope="session")
def prompts() -> list[Prompt]:
    return [Prompt(f"Prompt {p} <i>", (2, 3)) for p in range(30)]


@pytest.fixture(scope="session")
def report(space: KnobSpace) -> Report:
    """The head is better than everything by about 0.3."""
    rng = np.random.default_rng(0)
    labels = [space.label(k) for k in range(space.K)]
    rewards = {name: rng.uniform(size=(2, 30)) * 0.1 + 0.3 * (name == HEAD) for name in (HEAD, *labels, GREEDY, MIXTURE)}
    return Report(rewards, [TASKS[p % 3] for p in range(30)], labels[2], {label: 0.5 for label in labels})


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, space: KnobSpace, prompts: list[Prompt], report: Report) -> Path:
    """The files of a run that reporting reads. Nobody may change them."""
    path = tmp_path_factory.mktemp("run")
    rollouts = [Rollout(p, (2, 3, 4, 5, 6, 7, END), (p % 6,) * 3 + (5,) * 4, "text") for p in range(30)]
    second = [Rollout(r.prompt, (2, END), (4, 4), "text") for r in rollouts]
    rollouts = [rollout for both in zip(rollouts, second, strict=True) for rollout in both]  # seeds of a prompt are neighbours
    write_lines(path / "evaluation" / "rollouts" / "learned_head-00000.jsonl", rollouts)
    write_yaml(make_config({"knobs": ["temperature:0,0.5,1"], "model": "a<b"}), path / "config.yaml")
    rows = []
    for number in (1, 2):
        for step in range(1, 9):
            row = {"round": number, "head": "main", "step": step, "loss": 0.7 - 0.01 * step}
            rows += [
                row | ({"validation_loss": 0.69, "validation_accuracy": 0.6} if step % 4 == 0 else {}),
                row | {"head": "entropy"},
            ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_samples(path, space, prompts, report.tasks, WordTokenizer())
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run, to write reports into and to damage."""
    return shutil.copytree(finished, tmp_path / "run")
