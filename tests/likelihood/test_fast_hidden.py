"""Tables from hidden states equal those from logits, and families' rescaled logits are right."""

import pytest
import torch
from test_fast import SPACES, agree

from latentknobs import KnobSpace
from latentknobs.errors import ConfigError
from latentknobs.likelihood import fast, hidden
from latentknobs.likelihood.hidden import Projection, option_logps_from_hidden


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


def test_knobs_of_other_kinds_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'even' reads whole rows of logits\. Use option_logps"):
        option_logps_from_hidden(torch.zeros(1, 2), torch.tensor([0]), SPACES["dense last"], Projection(torch.zeros(5, 2)))
