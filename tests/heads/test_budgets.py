"""Budgets as features of a head: how they are read, encoded and saved, and that decoding and training see the same ones."""

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import latentknobs as lk
from latentknobs.engines.transformers import Attached
from latentknobs.errors import ConfigError, DecodingError
from latentknobs.heads.features import budgets_in, check_features, needed_by, read_features, width
from latentknobs.heads.option_head import CODE, OptionHead
from latentknobs.heads.segmenters import Every
from latentknobs.policies import HeadPolicy

SPACE = lk.KnobSpace.of({"temperature": [0.3, 0.6, 1.0]})
FEATURES = ("hidden", "entropy", "remaining", "samples")


def moved(features: int, budgets: int, seed: int = 0, **more: int) -> OptionHead:
    """A head with random weights everywhere and a scaler of its own, in float64."""
    torch.manual_seed(seed)
    head = OptionHead(SPACE, features, hidden=8, budgets=budgets, **more).double()
    with torch.no_grad():
        for weight in head.parameters():
            weight.normal_()
    head.fit_scaler(torch.randn(features).double(), torch.rand(features).double() + 0.5)
    return head


def policy_of(lm: nn.Module, features: tuple[str, ...] = ("hidden", "remaining", "samples"), pick: str = "sample") -> HeadPolicy:
    size = width(features, lm.config.hidden_size)
    return HeadPolicy(moved(size, budgets_in(features)).float(), SPACE, Every(1), features, pick)


def test_budgets_are_read_as_logarithms_and_nothing_is_below_zero() -> None:
    parts = {"remaining_N": torch.tensor([64, 1, 0, -3]), "samples_N": torch.tensor([8, 1, 1, 1])}
    feature_NF = read_features(("hidden", "remaining", "samples"), torch.ones(4, 2), torch.zeros(4, 3), parts)
    assert feature_NF[:, 2].tolist() == pytest.approx(torch.tensor([65.0, 2.0, 1.0, 1.0]).log().tolist())
    assert feature_NF[:, 3].tolist() == pytest.approx(torch.tensor([9.0, 2.0, 2.0, 2.0]).log().tolist())
    assert needed_by(FEATURES) == ("remaining_N", "samples_N") and needed_by(("hidden",)) == ()
    assert width(FEATURES, 5) == 8 and budgets_in(FEATURES) == 2


def test_budgets_are_named_last() -> None:
    assert check_features(FEATURES) == FEATURES
    with pytest.raises(ConfigError, match=r"must name the budgets \(remaining, samples\) last"):
        check_features(["remaining", "hidden"])


def test_a_new_head_is_uniform_whatever_the_budget() -> None:
    log_pi_NK = OptionHead(SPACE, 7, budgets=2)(torch.randn(9, 7) * 50)
    assert (log_pi_NK == log_pi_NK[0, 0]).all()


@settings(max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([0, 3]))
def test_a_budget_head_is_two_layers_beside_the_features(seed: int, rank: int) -> None:
    head = moved(7, 2, seed, rank=rank)
    feature_NF = torch.randn(5, 7, dtype=torch.float64)
    standard_NF = (feature_NF - head.shift_F) / head.scale_F
    assert head.code is not None
    code_NC = head.code[2](nn.functional.silu(head.code[0](standard_NF[:, 5:])))
    wanted_NK = head.mlp(torch.cat([standard_NF[:, :5], code_NC], -1)).log_softmax(-1)
    assert code_NC.shape == (5, CODE)
    assert torch.allclose(head(feature_NF), wanted_NK, atol=1e-12)


def test_an_adapter_keeps_them(lm: nn.Module, tmp_path: Path) -> None:
    size = width(FEATURES, lm.config.hidden_size)
    base = {"name": "tiny", "type": "llama", "hidden_size": lm.config.hidden_size, "layers": 2, "vocabulary": 50}
    adapter = lk.KnobAdapter(SPACE, moved(size, 2).float().eval(), Every(1), FEATURES, base)
    again = lk.KnobAdapter.from_pretrained(adapter.save_pretrained(tmp_path))
    feature_NF = torch.randn(3, size)
    assert again.features == FEATURES and torch.equal(again.head(feature_NF), adapter.head(feature_NF))


@pytest.mark.parametrize("kwargs", [{}, {"num_beams": 2, "do_sample": True}, {"use_cache": False}], ids=str)
def test_in_every_mode_the_record_says_what_generate_chose(lm: nn.Module, kwargs: dict[str, object]) -> None:
    ids_BP = torch.tensor([[3, 4, 5], [6, 7, 8]])
    mask_BP = torch.ones_like(ids_BP)
    with Attached(lm, policy_of(lm), seed=3) as attached:
        out_BL = lm.generate(ids_BP, attention_mask=mask_BP, max_new_tokens=6, pad_token_id=0, **kwargs)
        record = attached.record(out_BL, 3)
        if "num_beams" not in kwargs:
            T = out_BL.shape[1] - 3
            assert torch.equal(attached.option_BT[:, :T][record.mask_BT[:, :T]], record.option_BT[record.mask_BT])
    features = read_features(("remaining",), torch.ones(1, 1), torch.ones(1, 2), {"remaining_N": torch.tensor([6])})
    assert features.shape == (1, 1) and record.log_pi_BTK is not None


def seen_budgets(lm: nn.Module, monkeypatch: pytest.MonkeyPatch, budget: int | None = None, **kwargs: object) -> list[int]:
    """What a policy sees as `remaining` at each token."""
    seen: list[int] = []
    log_pi = HeadPolicy.log_pi
    monkeypatch.setattr(
        HeadPolicy, "log_pi", lambda self, s, state=None: seen.append(int(s.remaining_N[0])) or log_pi(self, s, state)
    )
    with Attached(lm, policy_of(lm)) as attached:
        attached.budget = budget
        lm.generate(torch.tensor([[3, 4, 5]]), attention_mask=torch.ones(1, 3), pad_token_id=0, eos_token_id=None, **kwargs)
    return seen


def test_the_budget_is_that_of_the_call_unless_it_is_overridden(lm: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    assert seen_budgets(lm, monkeypatch, max_new_tokens=4) == [4, 3, 2, 1]
    assert seen_budgets(lm, monkeypatch, max_length=7) == [4, 3, 2, 1]
    assert seen_budgets(lm, monkeypatch, budget=2, max_new_tokens=4) == [2, 1, 0, -1]
    with pytest.raises(DecodingError, match=r"budget=0\): give a whole number from 1"):
        seen_budgets(lm, monkeypatch, budget=0, max_new_tokens=4)


def test_rows_that_leave_and_rows_that_stay_see_the_same(lm: nn.Module) -> None:
    """The engine's batches with leaving rows against each response alone."""
    policy = policy_of(lm)
    with Attached(lm, policy, seed=5) as attached:
        together = lm.generate(torch.tensor([[3, 4], [9, 2]]), attention_mask=torch.ones(2, 2), max_new_tokens=5, pad_token_id=0)
        options = attached.option_BT.clone()
        attached.rows = torch.tensor([1])
        alone = lm.generate(torch.tensor([[9, 2]]), attention_mask=torch.ones(1, 2), max_new_tokens=5, pad_token_id=0)
        T = alone.shape[1] - 2
        assert torch.equal(attached.option_BT[0, :T], options[1, :T]) and torch.equal(alone[0], together[1, : T + 2])


def test_packed_batches_are_refused_by_name(lm: nn.Module) -> None:
    with Attached(lm, policy_of(lm)), pytest.raises(DecodingError, match="cannot supply remaining_N, samples_N"):
        lm.init_continuous_batching()


def test_an_identity_depends_on_what_is_read(lm: nn.Module) -> None:
    policy = policy_of(lm)
    assert policy.identity() == copy.deepcopy(policy).identity() and policy.needs == ("remaining_N", "samples_N")
