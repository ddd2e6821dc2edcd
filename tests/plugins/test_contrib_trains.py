"""Joint spaces with contributed knobs train on the testbed, up to thousands of options, and reload from disk."""

import pytest
import torch

import latentknobs as lk

SMALL = {
    "train_prompts": 8, "rollouts": 4, "eval_size": 0, "max_new_tokens": 8, "steps": 4, "hidden": 16, "pairs_per_step": 8,
}  # fmt: skip


def length(prompts, completions, **columns):
    """A reward that tells nearly all responses apart."""
    return [float(len(text)) for text in completions]


@pytest.mark.parametrize(
    ("knobs", "options"),
    [
        (["temperature:0.5,1,1.5", "top_n_sigma:0,0.7,1.5"], 9),
        (["temperature:0.5,1", "top_h", "typical_p:0.5,1", "xtc_threshold:0.1,1"], 32),
    ],
)
def test_a_joint_space_with_contributed_knobs_trains_and_comes_back(knobs: list[str], options: int, tmp_path) -> None:
    run = lk.train(knobs=knobs, reward=length, output_dir=tmp_path, **SMALL)
    assert len(run.adapter.space.options) == options
    again = lk.KnobAdapter.from_pretrained(tmp_path / "adapter")
    assert again.space == run.adapter.space
    assert all(weight.isfinite().all() for weight in again.head.state_dict().values())


def test_a_product_of_thousands_of_options_trains_with_the_factorised_head(tmp_path) -> None:
    knobs = [
        {"temperature": [0.3, 0.5, 0.7, 0.9, 1.1, 1.3, 1.5, 1.7]}, {"top_p": [0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1]},
        {"min_p": [0, 0.01, 0.02, 0.05, 0.1, 0.2]}, {"top_k": [0, 2, 5, 10, 20, 50]},
    ]  # fmt: skip
    run = lk.train(knobs=knobs, reward=length, factorised=True, output_dir=tmp_path, **SMALL)
    assert run.adapter.space.K == 2304 and run.adapter.head.mlp[-1].out_features == 28
    assert torch.cat([weight.flatten() for weight in run.adapter.head.parameters()]).isfinite().all()
