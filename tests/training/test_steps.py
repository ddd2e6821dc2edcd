"""Training on policy: each step samples with the head of that step, the LM runs once for each response, and a killed run ends
with the same bits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import finished
from killed import main
from safetensors.torch import load_file

import latentknobs as lk
from latentknobs import testbed
from latentknobs.data.prompts import make_prompts
from latentknobs.data.rollouts import roll_out
from latentknobs.engines.transformers import TransformersEngine
from latentknobs.errors import ConfigError, LatentKnobsError, NoExamplesError
from latentknobs.policies import HeadPolicy, UniformPolicy
from latentknobs.policies.names import policy_of
from latentknobs.training import steps
from latentknobs.training.imitation import nearest
from latentknobs.training.status import read_status

SETTINGS: dict[str, Any] = {
    "learner": "reinforce", "knobs": ["temperature:0,0.5,1"], "prompts": "testbed:stories", "train_prompts": 5, "rollouts": 4,
    "pairs_per_step": 8, "steps": 3, "eval_size": 0, "max_new_tokens": 8, "hidden": 8,
}  # fmt: skip


def rows(run: Path, head: str = "main") -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if row["head"] == head]


def heads(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "round-1" / "heads").iterdir())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    return lk.train(**SETTINGS, output_dir=tmp_path_factory.mktemp("run")).path


def test_a_run_killed_around_its_checkpoints_ends_with_the_same_bits_and_each_step_logged_once(
    whole: Path, tmp_path: Path
) -> None:
    for moment in ("checkpoint-main:1", "checkpoint-main:4", "checkpoint-rival:1", "rollouts:1"):
        assert finished(main, tmp_path / "run", f"at:round-1/{moment}", tmp_path / "log", SETTINGS) == -9, moment
    assert finished(main, tmp_path / "run", "never", tmp_path / "log", SETTINGS) == 0
    assert heads(tmp_path / "run") == heads(whole)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_a_step_says_what_it_earned_and_how_many_responses_it_took_so_far(whole: Path) -> None:
    assert [row["step"] for row in rows(whole)] == [row["step"] for row in rows(whole, "rival")] == [1, 2, 3]
    assert [row["rollouts"] for row in rows(whole)] == [8, 16, 24]
    assert all({"reward", "examples", "failed", "loss", "gradient_norm", "head_entropy"} <= row.keys() for row in rows(whole))
    assert read_status(whole).finished
    notes = lk.KnobAdapter.from_pretrained(whole / "adapter").training
    assert notes["learner"] == "reinforce" and notes["trained on"] == "24 responses to 5 prompts"


def test_a_run_says_beforehand_what_its_steps_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lk.train(**SETTINGS | {"steps": 1}, output_dir=tmp_path)
    said = " ".join("".join(capsys.readouterr()).split())
    assert "Responses to sample: at most 52 (32 for the steps of the head and its rival, 20 for round-1)." in said


def test_rollouts_are_those_of_the_head_of_now_and_the_gradient_never_runs_the_lm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sampled, read, forward = testbed.load_model(), [], [], [0]
    sample, read_all = TransformersEngine.sample, TransformersEngine.read
    model.register_forward_hook(lambda *_: forward.__setitem__(0, forward[0] + 1))

    def spy(self: Any, prompts: Any, policy: Any, **budget: Any) -> Any:
        weights = None if isinstance(policy, UniformPolicy) else policy.head.mlp[-1].weight.clone()
        sampled.append((len(prompts), weights))
        return sample(self, prompts, policy, **budget)

    def spy_read(self: Any, prompts: Any, responses: Any) -> Any:
        read.append(len(responses))
        return read_all(self, prompts, responses)

    def still(*args: Any, **kwargs: Any) -> Any:
        before = forward[0]
        row = update(*args, **kwargs)
        assert forward[0] == before
        return row

    update = steps.update
    monkeypatch.setattr(TransformersEngine, "sample", spy)
    monkeypatch.setattr(TransformersEngine, "read", spy_read)
    monkeypatch.setattr(steps, "update", still)
    quiet = SETTINGS | {"prompts": testbed.prompts("stories", "train", 20), "updates": 2, "train_prompts": 4}
    run = lk.train(**quiet, model=model, tokenizer=testbed.load_tokenizer(), output_dir=tmp_path / "run")
    of_main = sampled[:4]
    assert [count for count, _ in of_main] == [8, 8, 8, 8], "once before the first step, for the scaler"
    assert of_main[0][1] is None and not of_main[1][1].any(), "the first head is uniform"
    assert not torch.equal(of_main[1][1], of_main[2][1]) and not torch.equal(of_main[2][1], of_main[3][1])
    assert all(0 < count <= 8 for count in read[:4])
    saved = load_file(run.path / "round-1" / "heads" / "main.safetensors")
    assert not torch.equal(saved["mlp.4.weight"], of_main[3][1])
    policy = run.adapter.policy("sample")
    assert isinstance(policy, HeadPolicy)


COMMON = {"the", "a", "and", "was", "to", "he", "she", "it", "with", "had", "her", "his", "in", "day", "there", "they"}


def spelled(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """How many of the words are among the most frequent ones."""
    return [sum(word in COMMON for word in text.lower().split()) / max(1, len(text.split())) for text in completions]


@pytest.mark.parametrize("estimator", ["marginal", "score"])
def test_a_head_learns_that_noise_does_not_pay(tmp_path: Path, estimator: str) -> None:
    learned = SETTINGS | {"knobs": ["temperature:0.5,5"], "steps": 12, "train_prompts": 16, "level": "sequence", "rollouts": 4}
    run = lk.train(**learned | {"pairs_per_step": 16, "estimator": estimator}, reward=spelled, output_dir=tmp_path)
    seen = rows(run.path)
    assert sum(row["reward"] for row in seen[-3:]) > sum(row["reward"] for row in seen[:3]) + 0.1


def test_rewards_that_never_differ_end_the_run_with_a_reason(tmp_path: Path) -> None:
    def one(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [1.0] * len(completions)

    with pytest.raises(NoExamplesError, match=r"In the first 3 steps: There is nothing to learn from\. All 8 rewards are 1"):
        lk.train(**SETTINGS, reward=one, output_dir=tmp_path)


def test_a_task_that_is_solved_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []

    def solved_after_one_step(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        calls.append(1)
        is_first = len(calls) % SETTINGS["steps"] == 1  # of either head
        return [float(n % 2) if is_first else 1.0 for n in range(len(completions))]

    monkeypatch.setattr(steps, "SILENT", 2)
    run = lk.train(**SETTINGS, reward=solved_after_one_step, output_dir=tmp_path)
    assert [(row["dropped"], row["prompts"]) for row in rows(run.path)] == [(0, 2), (2, 2), (2, 2)]
    assert read_status(run.path).left_out.startswith("Steps left out 4 of the 6 prompts")
    assert [row["examples"] for row in rows(run.path)] == [8, 0, 0] and "in 2 steps in a row no rewards differed" in (
        capsys.readouterr().err
    )


def test_every_policy_is_judged_under_every_budget(tmp_path: Path) -> None:
    more = {"token_budgets": [4, 8], "parallel": [1, 4], "steps": 4, "eval_size": 3, "tune_size": 2, "eval_seeds": 1}
    run = lk.train(**SETTINGS | more, output_dir=tmp_path)
    found = json.loads((tmp_path / "evaluation" / "budgets.json").read_text())
    assert found["budgets"] == [[4, 1], [8, 1], [4, 4], [8, 4]]
    plain = {"learned head", "statistics-only head", "uniform mixture", "greedy decoding", "temperature 0", run.report.tuned}
    assert plain <= found["rewards"].keys(), "the tuned constant also where it is beyond the options"
    assert found["rewards"]["greedy decoding"] == found["rewards"]["temperature 0"]
    for name, reward_GP in found["rewards"].items():
        assert np.shape(reward_GP) == (4, 3), name
        if name not in ("learned head", "statistics only"):  # what does not see B: the best of four, and the mean of the same
            assert (np.array(reward_GP[2:]) >= np.array(reward_GP[:2]) - 1e-9).all(), name
    assert "responses together, B" in (tmp_path / "report.html").read_text() and read_status(run.path).finished
    lk.train(**SETTINGS | more | {"token_budgets": [], "parallel": [1]}, output_dir=tmp_path)
    assert not (tmp_path / "evaluation" / "budgets.json").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parallel": [1, 5]}, r"parallel holds 5, more than rollouts=4"),
        ({"token_budgets": [4, 9]}, r"token_budgets holds 9, more than max_new_tokens=8"),
        ({"token_budgets": [0]}, r"greater than or equal to 1"),
        ({"validation": 0.2}, r"nothing is held out"),
        ({"first_round": "balanced"}, r"samples with its own head from the first step on"),
        ({"pairs_per_step": 6}, r"not whole groups of rollouts=4"),
        ({"max_new_tokens": 4000}, r"context"),
        ({"preferences": "pairs.jsonl"}, r"learns from scored rollouts, not from preferences"),
    ],
)
def test_settings_that_no_step_can_keep_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, lk.errors.DataError), match=message):
        lk.train(**SETTINGS | settings, output_dir=tmp_path)


def test_an_evaluation_is_of_single_responses_whatever_the_number_of_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    log_pi = HeadPolicy.log_pi

    def spy(self: Any, observed: Any, state: Any = None) -> Any:
        if "samples" in self.features:
            seen.append((int(observed.samples_N[0]), int(observed.remaining_N[0])))
        return log_pi(self, observed, state)

    monkeypatch.setattr(HeadPolicy, "log_pi", spy)
    more = {
        "features": ["hidden", "remaining", "samples"],
        "parallel": [2],
        "eval_size": 2,
        "tune_size": 2,
        "steps": 1,
        "keep_head": True,
    }
    run = lk.train(**SETTINGS | more, output_dir=tmp_path)
    assert seen[:2] == [(2, 8), (2, 7)], "the step samples under its own budget"
    assert seen[-1][0] == 1 and run.adapter.head.budgets == 2


def test_budgets_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    sample = TransformersEngine.sample

    def spy(self: Any, prompts: Any, policy: Any, *, max_new_tokens: int, samples: int = 1, **more: Any) -> Any:
        if isinstance(policy, HeadPolicy) and "hidden" in policy.features:
            seen.append((max_new_tokens, samples))
        return sample(self, prompts, policy, max_new_tokens=max_new_tokens, samples=samples, **more)

    monkeypatch.setattr(TransformersEngine, "sample", spy)
    lk.train(**SETTINGS | {"token_budgets": [4, 8], "parallel": [1, 2], "steps": 5}, output_dir=tmp_path)
    assert seen[:5] == [(4, 1), (8, 1), (4, 2), (8, 2), (4, 1)]


def test_a_head_imitates_a_rule_before_its_first_step(tmp_path: Path) -> None:
    rule = "sentence_start:cold=0,hot=1"
    more = {"imitate": rule, "steps": 1, "learning_rate": 1e-9, "max_new_tokens": 24, "train_prompts": 128, "hidden": 64}
    run = lk.train(**SETTINGS | more, output_dir=tmp_path)
    model, tokenizer = testbed.load_model(), testbed.load_tokenizer()
    prompts = make_prompts(testbed.prompts("stories", "eval", 16), tokenizer)
    rollouts = roll_out(model, tokenizer, prompts, policy_of(rule, tokenizer), copies=1, max_new_tokens=24, batch_size=16, seed=3)
    seen = TransformersEngine(model, tokenizer).observe([prompts[r.prompt].ids for r in rollouts], [r.ids for r in rollouts])
    policy = run.adapter.policy()
    chosen = torch.cat([policy.choose(one, torch.zeros(len(one.logits_NV)), None).value_NJ[:, 0] for one in seen])
    wanted = torch.tensor([value for rollout in rollouts for (value,) in rollout.values])
    assert 0 < (wanted == 0).sum() < len(wanted)
    for value in (0, 1):
        assert (chosen == value)[wanted == value].double().mean() > 0.8


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sentence_strat:cold=0", "sentence_start"),
        ("constant:top_p=0.5", "chooses top_p, and the head chooses temperature"),
        ("sentence_start:cold=0,hot=1", "at level 'token', and the head at level 'every:4'"),
    ],
)
def test_what_a_head_cannot_imitate_is_refused_before_anything_is_sampled(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(LatentKnobsError, match=said):
        lk.train(**SETTINGS | {"imitate": name, "level": "every:4"}, output_dir=tmp_path)
    assert not list(tmp_path.rglob("*.jsonl"))


def test_another_policy_of_the_same_name_makes_other_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, plain = SETTINGS | {"imitate": "constant:temperature=0", "output_dir": tmp_path}, steps.imitated
    lk.train(**settings)
    before = heads(tmp_path)
    monkeypatch.setattr(steps, "imitated", lambda name, *more: plain("constant:temperature=1", *more))
    lk.train(**settings, resume=True)
    assert heads(tmp_path) != before


def test_a_value_is_imitated_by_the_nearest_option_and_never_by_the_opposite_one() -> None:
    space = lk.KnobSpace.of("temperature:0,0.5,1", "top_k:0,20,50")
    values = torch.tensor([[0.2, 5.0], [1.0, 0.0], [0.8, 49.0], [0.0, 24.0]], dtype=torch.float64)
    found = [tuple(space.options[k].values()) for k in nearest(values, space, "rule").tolist()]
    assert found == [(0, 20), (1, 0), (1, 50), (0, 20)]
    with pytest.raises(ConfigError, match="top_k=60, and the grid of the run reaches from 0 to 50"):
        nearest(torch.tensor([[0.5, 60.0]], dtype=torch.float64), space, "rule")
