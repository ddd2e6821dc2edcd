"""Steering: commands order the values of a response, plain prompts keep theirs, and what cannot be steered is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from tiny_models import VOCAB, tiny_lm, word_tokenizer

import latentknobs as lk
from latentknobs import testbed
from latentknobs.adapter import describe_model
from latentknobs.cli import cli
from latentknobs.errors import ConfigError
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import Every
from latentknobs.heads.value_head import ValueHead, opens
from latentknobs.learners.end_to_end.losses import ranking_loss
from latentknobs.training.steering import Seen, mean_shares, shares

SPACE = lk.KnobSpace.of("temperature:0.2,2", "min_p:0,0.3")


def test_the_ranking_loss_is_what_is_missing_of_the_margin() -> None:
    lower, higher = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.5, 0.55, 0.2])
    torch.testing.assert_close(ranking_loss(lower, higher, 0.1), torch.tensor([0.0, 0.05, 0.8]))


def test_knobs_open_towards_more_chance() -> None:
    ends = {"temperature": True, "top_p": True, "min_p": False, "top_n_sigma": True, "epsilon_cutoff": False}
    assert {name: opens(lk.KnobSpace.of(name).knobs[0], 0.1, 0.9) for name in ends} == ends


def test_shares_count_every_token_once_whatever_the_padding() -> None:
    torch.manual_seed(0)
    head = ValueHead(SPACE, 4, hidden=5)
    torch.nn.init.normal_(head.nets[0][2].weight)
    feature_RTF, mask_RT = torch.randn(4, 3, 4), torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]]).float()
    share_RTJ = shares(head, Seen(feature_RTF, mask_RT, None))
    value_RTJ = head(feature_RTF.flatten(0, 1)).view(4, 3, 2)
    torch.testing.assert_close(share_RTJ[..., 0], (value_RTJ[..., 0] - 0.2) / 1.8)
    torch.testing.assert_close(share_RTJ[..., 1], 1 - value_RTJ[..., 1] / 0.3)  # a lower min_p leaves more to chance
    mean_PJ = mean_shares(share_RTJ, mask_RT, 2)
    torch.testing.assert_close(mean_PJ[0], torch.cat([share_RTJ[0], share_RTJ[1, :1]]).mean(0))


@pytest.fixture(scope="module")
def world() -> tuple[Any, Any]:
    return tiny_lm("llama"), word_tokenizer()


def adapter_for(model: Any, head: Any = None, statistics: bool = False) -> lk.KnobAdapter:
    torch.manual_seed(1)
    head = head or ValueHead(SPACE, model.config.hidden_size, hidden=16, statistics=statistics)
    notes = {"held-out result": "It beats all."}
    return lk.KnobAdapter(SPACE, head.eval(), Every(1), ("hidden",), describe_model(model), training=notes)


@pytest.mark.parametrize("statistics", [False, True])
def test_commands_move_the_values_and_the_adapter_itself_stays(world: tuple[Any, Any], statistics: bool) -> None:
    model, tokenizer = world
    adapter = adapter_for(model, statistics=statistics)
    before = adapter.policy().identity()
    words = [tokenizer.decode([i]) for i in range(3, VOCAB)]
    texts = [f"{a} {b}" for a, b in zip(words, words[5:], strict=False)]
    settings: dict[str, Any] = {"low": f"{words[0]} {words[0]} {{prompt}}", "high": [f"{words[7]} {words[7]} {{prompt}}"]}
    state = torch.random.get_rng_state()
    steered = lk.steer(
        adapter, iter(texts), model=model, tokenizer=tokenizer, max_new_tokens=5, steps=80, copies=2, learning_rate=1e-2,
        anchor=0.0, **settings,
    )  # fmt: skip
    assert adapter.policy().identity() == before and torch.equal(torch.random.get_rng_state(), state)
    assert steered.training["steered high"] == settings["high"][0]
    assert adapter.training["held-out result"] and "held-out result" not in steered.training, "of the head before"
    means = []
    for command in (settings["low"], settings["high"][0]):
        ids = [tokenizer(command.replace("{prompt}", text))["input_ids"] for text in texts]
        with steered.attach(model, seed=4) as knobs:
            values = []
            for row in ids:
                model.generate(torch.tensor([row]), max_new_tokens=5)
                values.append(knobs.value_BTJ[0].float().mean(0))
        means.append(torch.stack(values).mean(0))
    assert means[0][0] < means[1][0] and means[0][1] > means[1][1], means


@pytest.mark.parametrize(("change", "message"), [
    ({"low": "be precise"}, r"'be precise' does not say where the prompt stands. Write it with \{prompt\}"),
    ({"prompts": []}, "Steering needs at least one prompt"),
    ({"prompts": [{"text": "x"}]}, "each must be a text or a row with a text in `prompt`"),
    ({"high": []}, "'' does not say where the prompt stands"),
    ({"steps": 0}, "steps=0 cannot be steered with. Choose a finite number of at least 1"),
    ({"margin": float("nan")}, "margin=nan cannot be steered with. Choose a finite number of at least 0"),
])  # fmt: skip
def test_what_cannot_be_read_is_refused(world: tuple[Any, Any], change: dict[str, Any], message: str) -> None:
    model, tokenizer = world
    arguments = {"prompts": ["a b"], "low": "c {prompt}", "high": "d {prompt}"} | change
    with pytest.raises(ConfigError, match=message):
        lk.steer(adapter_for(model), model=model, tokenizer=tokenizer, **arguments)


def test_heads_without_values_are_refused(world: tuple[Any, Any]) -> None:
    model, tokenizer = world
    for head in (OptionHead(SPACE, model.config.hidden_size, 4), ValueHead(SPACE, model.config.hidden_size, cap=30.0)):
        with pytest.raises(ConfigError, match="Only adapters with a value head, for models that do not cap"):
            lk.steer(adapter_for(model, head), ["a"], low="c {prompt}", high="d {prompt}", model=model, tokenizer=tokenizer)


def test_an_adapter_is_steered_on_the_command_line(tmp_path: Path) -> None:
    model = testbed.load_model()
    torch.manual_seed(1)
    head = ValueHead(SPACE, model.config.hidden_size, hidden=8)
    lk.KnobAdapter(SPACE, head.eval(), Every(1), ("hidden",), describe_model(model)).save_pretrained(tmp_path / "adapter")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in testbed.prompts("stories", "train", 4)))
    command = ["steer", str(tmp_path / "adapter"), "--model", "testbed", "--prompts", str(tmp_path / "rows.jsonl"), "--low",
               r"Rule: Then\n{prompt}", "--high", r"Rule: So\n{prompt}", "--steps", "3", "--max-new-tokens", "4"]  # fmt: skip
    found = CliRunner().invoke(cli, [*command, "--out", str(tmp_path / "new")])
    assert found.exit_code == 0, found.output
    steered = lk.KnobAdapter.from_pretrained(tmp_path / "new")
    assert steered.training["steered low"] == "Rule: Then\n{prompt}"
    assert steered.policy().identity() != lk.KnobAdapter.from_pretrained(tmp_path / "adapter").policy().identity()
    for out, message in ((tmp_path / "adapter", "stays as it is"), (tmp_path / "a" / "b", "its folder does not exist")):
        refused = CliRunner().invoke(cli, [*command, "--out", str(out)])
        assert refused.exit_code == 2 and message in refused.output
