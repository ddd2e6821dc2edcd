"""Discriminators: what they learn, their files, the knob that guides with one, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import latentknobs as lk
from latentknobs import testbed
from latentknobs.cli import cli
from latentknobs.conformance.knobs import CHECKS
from latentknobs.data.disk import save_tensors
from latentknobs.data.prompts import make_prompts
from latentknobs.data.rollouts import roll_out
from latentknobs.engines.transformers import Attached, TransformersEngine
from latentknobs.errors import AdapterError, ConfigError, DecodingError, NoExamplesError, RunError
from latentknobs.heads.discriminator import FORMAT, Discriminator, load_discriminator
from latentknobs.knobs.registry import resolve
from latentknobs.policies import ConstantPolicy
from latentknobs.policies.names import policy_of
from latentknobs.training.discriminate import Examples, fit_discriminator

D, V = 8, 23


def examples(is_learnable: bool) -> Examples:
    """Whether token and state agree in sign, or nothing."""
    torch.manual_seed(0)
    hidden_MD, token_M = torch.randn(3000, D), torch.randint(V, (3000,))
    agrees_M = (hidden_MD[:, 0] > 0) == (token_M % 2 == 0)
    label_M = agrees_M.float() if is_learnable else (torch.rand(3000) < 0.5).float()
    return Examples(hidden_MD, token_M, label_M, torch.ones(3000), torch.arange(3000) % 5 == 0)


def saved(path: Path, hidden_size: int = D, vocabulary: int = V) -> Path:
    torch.manual_seed(0)
    found = Discriminator(hidden_size, vocabulary, 3)
    torch.nn.init.normal_(found.state.weight)
    save_tensors(found.state_dict(), path, {"format": FORMAT, "model": "a model"})
    return path


def test_what_depends_on_state_and_token_together_is_learned() -> None:
    _, quality = fit_discriminator(examples(True), V, 4, 120)
    assert quality.auc > 0.9 and quality.loss < 0.8 * quality.base and "do not guide" not in str(quality)
    _, nothing = fit_discriminator(examples(False), V, 4, 40)
    assert abs(nothing.auc - 0.5) < 0.1 and nothing.loss > 0.97 * nothing.base


def test_all_tokens_at_once_are_as_each_alone_and_others_have_no_opinion(tmp_path: Path) -> None:
    found, model = load_discriminator(saved(tmp_path / "d.safetensors"))
    hidden_ND = torch.randn(5, D)
    log_prob_NV = found.log_prob(hidden_ND, V + 4)
    each_NV = torch.stack([found(hidden_ND, torch.full((5,), v)) for v in range(V)], -1)
    assert model == "a model" and torch.allclose(log_prob_NV[:, :V], torch.nn.functional.logsigmoid(each_NV), atol=1e-6)
    assert torch.allclose(
        log_prob_NV[:, V:], torch.nn.functional.logsigmoid(found._state(hidden_ND)[0]).unsqueeze(-1).expand(5, 4)
    )
    assert torch.allclose(found.log_prob(hidden_ND, 7), log_prob_NV[:, :7], atol=1e-6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny run on the testbed, and a discriminator of long responses from it."""
    run, out = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("out") / "d.safetensors"
    settings: dict[str, Any] = {"train_prompts": 12, "rollouts": 3, "eval_size": 0, "max_new_tokens": 8, "steps": 2, "hidden": 8}
    lk.train(knobs=["temperature:0.5,1.5"], output_dir=run, reward=length, **settings)
    found = CliRunner().invoke(cli, ["discriminator", str(run), "--out", str(out), "--steps", "30", "--rank", "4"])
    assert found.exit_code == 0, found.output
    assert "held-out loss" in found.output and "AUC" in found.output and "one forward pass for each" in found.stderr
    return run, out


def length(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [float(len(text)) for text in completions]


@pytest.mark.parametrize("check", CHECKS)
def test_the_knob_keeps_its_contract(check: str, tmp_path: Path) -> None:
    path = str(saved(tmp_path / "d.safetensors"))
    CHECKS[check](resolve({"classifier_scale": {"options": [0.0, 1.0, 3.0], "discriminator": path}}))


def test_guiding_is_learnable_and_repeats_itself(trained: tuple[Path, Path]) -> None:
    _, path = trained
    model, tokenizer = testbed.load_model(), testbed.load_tokenizer()
    prompts = make_prompts(testbed.prompts("stories", "train", 4), tokenizer)
    policies = [policy_of(spec) for spec in (f"classifier:scale=4,discriminator={path}", "constant:temperature=1")]
    guided, again, plain = (
        [one.text for one in roll_out(model, tokenizer, prompts, policy, max_new_tokens=8, batch_size=4, seed=0)]
        for policy in (policies[0], policies[0], policies[1])
    )
    assert guided == again != plain
    space = lk.KnobSpace.of({"classifier_scale": {"options": [0.0, 2.0], "discriminator": str(path)}})  # type: ignore[dict-item]
    assert lk.KnobSpace.from_dict(json.loads(json.dumps(space.to_dict()))).fingerprint() == space.fingerprint()


def test_what_cannot_guide_is_refused(trained: tuple[Path, Path], tmp_path: Path) -> None:
    run, _ = trained
    wide = resolve({"classifier_scale": {"options": [0.0, 1.0], "discriminator": str(saved(tmp_path / "w.safetensors", 7))}})
    with pytest.raises(DecodingError, match=r"reads hidden states of width 7 \(of a model\), and this model's have 8"):
        wide.apply_in(torch.zeros(1, V), torch.ones(1), lk.Context(hidden_ND=torch.zeros(1, D)))
    wrong = ConstantPolicy(lk.KnobSpace.of(wide), 1)
    with pytest.raises(ConfigError, match=r"'classifier_scale' reads hidden states of width 7, and this model's have 192"):
        Attached(testbed.load_model(), wrong)
    with pytest.raises(ConfigError, match="width 7"):
        TransformersEngine(testbed.load_model(), testbed.load_tokenizer()).check(wrong)
    with pytest.raises(ConfigError, match=r"with options \[0\.0, 1\.0\] needs a discriminator"):
        lk.KnobSpace.of("classifier_scale:0,1")
    with pytest.raises(ConfigError, match="needs discriminator=FILE"):
        policy_of("classifier:scale=1,discriminator=")
    with pytest.raises(AdapterError, match=r"There is no discriminator .* Write one with `latentknobs discriminator RUN`"):
        policy_of(f"classifier:scale=1,discriminator={tmp_path / 'none'}")
    (tmp_path / "text").write_text("not a file of tensors")
    with pytest.raises(AdapterError, match="is not a discriminator"):
        policy_of(f"classifier:scale=1,discriminator={tmp_path / 'text'}")
    with pytest.raises(NoExamplesError, match="none earn more than 1000, so there is nothing to tell apart"):
        lk.discriminator(run, tmp_path / "d", threshold=1000)
    with pytest.raises(RunError, match="There are no scored rollouts"):
        lk.discriminator(tmp_path, tmp_path / "d")
    assert not (tmp_path / "d").exists()
