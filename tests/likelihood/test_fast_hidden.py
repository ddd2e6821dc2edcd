"""Tables from hidden states equal those from logits, and families' rescaled logits are right."""

import pytest
import torch
from test_fast import SPACES, agree

import latentknobs.likelihood.walk as walking
from latentknobs import KnobSpace
from latentknobs.errors import ConfigError
from latentknobs.likelihood import fast, hidden
from latentknobs.likelihood.hidden import Projection, option_logps_from_hidden
from latentknobs.likelihood.plan import plan_of


@pytest.mark.parametrize("name", ["transformers", "vllm", "llama.cpp", "third party", "strategies", "temperatures"])
@pytest.mark.parametrize(("V", "chunk"), [(7, 3), (900, 64), (900, 900), (3_000, 1_000)])
def test_tables_from_hidden_states(name: str, V: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hidden, "CHUNK", chunk)
    space = KnobSpace.of("temperature") if name == "temperatures" else SPACES[name]
    random = torch.Generator().manual_seed(V)
    hidden_ND = torch.randn(9, 6, generator=random, dtype=torch.float64)
    weight_VD = torch.randn(V, 6, generator=random, dtype=torch.float64)
    projection = Projection(weight_VD, torch.randn(V, generator=random, dtype=torch.float64), lambda x: 4 * torch.tanh(x / 4))
    logits_NV = projection.logits(hidden_ND)
    targets_N = torch.cat([logits_NV[:3].argmax(-1), logits_NV[3:].softmax(-1).multinomial(1, generator=random)[:, 0]])
    table_NK = option_logps_from_hidden(hidden_ND, targets_N, space, projection)
    agree(table_NK, fast.option_logps(logits_NV, targets_N, space), 1e-9)


@pytest.mark.parametrize("name", ["transformers", "third party"])
@pytest.mark.parametrize("rows", [1, 4])
def test_more_rows_than_indices_are_walked_in_parts(name: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden_ND, weight_VD = torch.randn(9, 6, dtype=torch.float64), torch.randn(900, 6, dtype=torch.float64)
    hidden_ND[:5] *= 9  # sharp: cut inside the top
    targets_N, projection = torch.arange(9), Projection(weight_VD)
    table_NK = option_logps_from_hidden(hidden_ND, targets_N, SPACES[name], projection)
    monkeypatch.setattr(walking, "INDICES", rows * walking._places(SPACES[name], plan_of(SPACES[name], hidden_ND.device), 225))
    taken, whole = [], walking._in_parts
    monkeypatch.setattr(walking, "_in_parts", lambda *args: taken.append(args[-1]) or whole(*args))
    assert torch.equal(option_logps_from_hidden(hidden_ND, targets_N, SPACES[name], projection), table_NK)
    assert taken[0] == rows


def test_knobs_of_other_kinds_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'even' reads whole rows of logits\. Use option_logps"):
        option_logps_from_hidden(torch.zeros(1, 2), torch.tensor([0]), SPACES["dense last"], Projection(torch.zeros(5, 2)))
