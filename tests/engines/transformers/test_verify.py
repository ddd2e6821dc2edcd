"""An attached policy acts on every token, or an error says so: the hook is broken in ways that versions and wrappers break it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from decoding_oracle import left_padded, policy_for
from tiny_models import tiny_lm
from torch import Tensor, nn

import latentknobs as lk
from latentknobs.engines.transformers import Attached, attach, caches, versions
from latentknobs.errors import DecodingError
from latentknobs.heads.segmenters import Every
from latentknobs.policies import UniformPolicy

HOT = UniformPolicy(lk.KnobSpace.of({"temperature": [1.0, 1.5]}), Every(1))


def without_hooks(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a library called `forward` without the module's hooks."""
    model._forward_hooks.clear()


def with_the_cache_under_a_new_name(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """What transformers 5.24 did to versions of this package that knew the old names alone."""
    monkeypatch.setattr(caches, "NAMES", ("another_name",))


def with_logits_put_back(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later hook of somebody else returns other logits."""
    model.register_forward_hook(_shifted_logits)


def with_tokens_of_its_own(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """`generate` takes other tokens than the most probable ones."""
    monkeypatch.setattr(torch, "argmax", lambda scores, *args, **kwargs: scores.argmin(-1))


def with_positions_that_jump(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bookkeeping of columns goes wrong."""
    before = attach.Ledger.before

    def one_further(*args: Any) -> int:
        first = before(*args)
        return first + (first > 0)

    monkeypatch.setattr(attach.Ledger, "before", one_further)


def _shifted_logits(module: nn.Module, args: Any, output: Any) -> Any:
    output.logits = output.logits.roll(1, -1)
    return output


Break = Callable[[nn.Module, pytest.MonkeyPatch], None]
BREAKS: list[Break] = [
    without_hooks, with_the_cache_under_a_new_name, with_logits_put_back, with_tokens_of_its_own, with_positions_that_jump,
]  # fmt: skip


@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: broken.__name__)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_policy_that_does_not_act_is_an_error(broken: Break, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_lm("llama")
    with Attached(model, policy_for(model, level, "sample")):
        model.generate(**left_padded(), max_new_tokens=6)
        broken(model, monkeypatch)
        with pytest.raises(DecodingError, match=r"not the policy's \(latentknobs .*, transformers 5\..*detach the policy"):
            model.generate(**left_padded(), max_new_tokens=6)
        monkeypatch.undo()


@pytest.mark.parametrize("settings", [{"num_beams": 2}, {"prompt_lookup_num_tokens": 2}, {"repetition_penalty": 1.3}])
def test_so_it_is_where_generate_draws_the_tokens(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = tiny_lm("llama"), {"input_ids": torch.tensor([[3, 5, 9]]), "max_new_tokens": 6}
    with Attached(model, HOT):
        model.generate(**inputs, **settings)
        without_hooks(model, monkeypatch)
        with pytest.raises(DecodingError, match="did not act at all"):
            model.generate(**inputs, **settings)


def test_rows_that_have_ended_are_padding_and_no_error() -> None:
    """Ends given in the call, stop strings and criteria: rows end at different times, and others go on."""
    model, inputs = tiny_lm("llama"), left_padded()

    def second_row_ends(ids_BL: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.arange(len(ids_BL)) == 1

    with Attached(model, HOT):
        out_BL = model.generate(**inputs, max_new_tokens=12, eos_token_id=[7, 9, 11], pad_token_id=0)
        assert (out_BL[:, -1] == 0).any()
        out_BL = model.generate(**inputs, max_new_tokens=12, stopping_criteria=[second_row_ends], eos_token_id=-1)
        assert (out_BL[1, inputs["input_ids"].shape[1] + 1 :] == 0).all()


def test_untested_versions_are_announced_once(monkeypatch: pytest.MonkeyPatch, lm: nn.Module) -> None:
    versions.announce_untested.cache_clear()
    monkeypatch.setattr(versions.transformers, "__version__", "5.99.0")
    with pytest.warns(UserWarning, match=r"tested with transformers 5\.\d+ to 5\.\d+, and this is 5\.99\.0"), Attached(lm, HOT):
        pass
    versions.announce_untested.cache_clear()


def test_the_declared_range_of_transformers_is_the_tested_one() -> None:
    """constraints.txt pins its oldest version, `make test-newest` takes its newest one."""
    root = Path(__file__).parents[3]
    oldest = ".".join(map(str, versions.OLDEST))
    above = f"{versions.NEWEST[0]}.{versions.NEWEST[1] + 1}"
    assert f'"transformers>={oldest},<{above}"' in (root / "pyproject.toml").read_text()
    assert f"transformers=={oldest}." in (root / "constraints.txt").read_text()
