"""What an adapter may hold instead of its head, and the choice between them."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import latentknobs as lk
from latentknobs import testbed
from latentknobs.evaluation.report import HEAD as JUDGED
from latentknobs.evaluation.report import TRAINED
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import parse_level
from latentknobs.policies import Choices, MeanShift
from latentknobs.training.choice import CONSTANT, HEAD, MEAN, SHARPENED, candidates, sharpened, winner, with_option

SEEN = lk.Context(hidden_ND=torch.zeros(1, 192), logits_NV=torch.zeros(1, 9))
SPACE = lk.KnobSpace.of("temperature:0,0.5,1", "top_p:0.5,1")


def random_head(factorised: bool, seed: int = 0, width: int = 6) -> OptionHead:
    torch.manual_seed(seed)
    head = OptionHead(SPACE, width, 8, factorised)
    torch.nn.init.normal_(head.mlp[-1].weight, std=3.0)
    return head


@given(st.booleans(), st.integers(0, 5), st.integers(0, 9), st.floats(0, 5))
def test_a_sharpened_head_departs_from_the_constant_only_where_it_was_surer_than_the_margin(factorised, option, seed, margin):
    head, feature_NF = random_head(factorised, seed), torch.randn(64, 6, generator=torch.Generator().manual_seed(seed))
    before_NK, after_NK = head(feature_NF), sharpened(head, option, margin)(feature_NF)
    lead_N = before_NK.amax(-1) - before_NK[:, option]
    clear_N = (lead_N - margin).abs() > 1e-4
    stays_N = after_NK.argmax(-1) == option
    if not factorised:  # a factorised head may stop halfway, at an option that shares a knob's value with the constant
        assert (stays_N == (lead_N < margin))[clear_N].all()
    assert stays_N[clear_N & (lead_N < margin)].all() or factorised
    assert torch.equal(head(feature_NF), before_NK), "the head itself is as it was"


@pytest.mark.parametrize("values", [[0.25, 0.75], [0.5, 0.6], [0.5, 1.0]])
def test_a_space_gets_one_more_option_or_finds_it(values):
    space, k = with_option(SPACE, values)
    assert space.values_KJ()[k].tolist() == values
    assert space.options[:6] == SPACE.options and 6 + (values != [0.5, 1.0]) == space.K


@pytest.mark.parametrize("factorised", [False, True])
def test_candidates_do_what_they_are_called_and_survive_saving(tmp_path, factorised):
    base = {"name": "x", "type": "llama", "hidden_size": 6, "layers": 1, "vocabulary": 9}
    rival = random_head(factorised, width=5)
    adapter = lk.KnobAdapter(SPACE, random_head(False), parse_level("token"), ("hidden",), base, rival)
    mean = MeanShift(SPACE, Choices(torch.tensor([[0.4, 0.7], [0.6, 0.9]])))
    beyond_J = torch.tensor([1.5, 1.0])
    found = candidates(adapter, 3, beyond_J.tolist(), mean, 1.0)
    assert list(found) == [HEAD, SHARPENED, CONSTANT, MEAN] and found[HEAD] is adapter
    seen = lk.Context(hidden_ND=torch.randn(5, 6), logits_NV=torch.randn(5, 9))
    for name, value_J in ((CONSTANT, beyond_J.double()), (MEAN, mean.value_J)):
        again = lk.KnobAdapter.from_pretrained(found[name].save_pretrained(tmp_path / name[:4]))
        assert torch.allclose(again.policy().choose(seen, torch.zeros(5)).value_NJ, value_J.expand(5, -1)), name
        before_NK, after_NK = (one.rival_policy().log_pi(seen) for one in (adapter, again))
        assert torch.allclose(after_NK[:, :6], before_NK, atol=1e-5) and (after_NK[:, 6] < -1000).all()
    third = SPACE.values_KJ()[3:4]
    assert list(candidates(adapter, 3, third[0].tolist(), MeanShift(SPACE, Choices(third)), None)) == [HEAD, CONSTANT]


def test_equal_candidates_leave_the_head():
    assert winner({HEAD: np.ones((2, 3)), CONSTANT: np.ones((2, 3))}) == HEAD
    assert winner({HEAD: np.ones((2, 3)), CONSTANT: np.ones((2, 3)) + 1e-9}) == CONSTANT


SMALL = {"train_prompts": 10, "rollouts": 4, "eval_size": 6, "tune_size": 8, "max_new_tokens": 8, "steps": 4, "hidden": 16}


def warmer(prompts, completions, **columns):
    """Anything but the greedy text of the prompt is good."""
    return [float(text != best) for text, best in zip(completions, columns["best"], strict=True)]


warmer.version = "1"


@pytest.fixture(scope="module")
def rows():
    model, tokenizer = testbed.load_model(), testbed.load_tokenizer()
    found = []
    for row in testbed.prompts("stories", "train", 40):
        ids = tokenizer(row["prompt"], return_tensors="pt")["input_ids"]
        out = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
        found.append({"prompt": row["prompt"], "best": tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)})
    return found


def test_a_run_saves_the_best_constant_where_the_head_is_worse(rows, tmp_path):
    mine = {"prompts": rows[:30], "eval_prompts": rows[30:], "reward": warmer, "knobs": ["temperature:0,1.5"],
            "learning_rate": 1e-30}  # fmt: skip
    run = lk.train(**mine, output_dir=tmp_path, **SMALL)
    held = str(run.adapter.training["choice"])
    assert held.startswith(f"The adapter holds the {CONSTANT}"), "an untrained head takes the first option, which is the worse"
    assert TRAINED in run.report.rewards and held in run.report.verdict()
    assert run.report.rewards[JUDGED].mean() > run.report.rewards[TRAINED].mean()
    saved = lk.KnobAdapter.from_pretrained(run.path / "adapter")
    assert saved.training["choice"] == held and (run.path / "report.html").exists()
    kept = lk.train(**mine, output_dir=tmp_path, keep_head=True, **SMALL)
    assert "choice" not in kept.adapter.training and TRAINED not in kept.report.rewards
    assert (kept.report.rewards[JUDGED] == run.report.rewards[TRAINED]).all()
    plan = json.loads((tmp_path / "plan.json").read_text())["stages"]
    assert "choice/rollouts" not in plan and plan["controls/rollouts"] >= 0


def test_a_best_constant_at_the_edge_gets_a_wider_grid_and_the_adapter_may_hold_it(rows, tmp_path):
    run = lk.train(
        prompts=rows[:30], eval_prompts=rows[30:], reward=warmer, knobs=["temperature:0.1,0.4"], learning_rate=1e-30,
        output_dir=tmp_path, account=True, **SMALL,
    )  # fmt: skip
    tuned = run.report.tuned
    assert float(tuned.split()[1]) > 0.4 and tuned in run.report.rewards and tuned in run.report.accounts
    assert "so these were tuned, too: temperature 0.7" in run.report.notes["numbers"]
    assert run.adapter.policy().choose(SEEN, torch.zeros(1)).value_NJ.tolist() == [[float(tuned.split()[1])]]
    plan = json.loads((tmp_path / "plan.json").read_text())["stages"]
    assert plan["wider/rollouts"] == SMALL["tune_size"]
    again = lk.evaluate(
        run.path / "adapter",
        prompts=rows[30:],
        tune_prompts=rows[:30],
        reward=warmer,
        eval_size=6,
        tune_size=4,
        train_prompts=10,
        max_new_tokens=8,
    )
    assert again.rewards[tuned].mean() == again.rewards[JUDGED].mean()
