"""A merged head is the mean of its heads' log-probabilities, exactly."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.instruct.merged import merged
from latentknobs import KnobSpace
from latentknobs.heads.option_head import OptionHead

SPACE = KnobSpace.of({"temperature": [0.0, 0.5, 1.0], "top_p": [0.8, 1.0]})


def head(seed: int) -> OptionHead:
    torch.manual_seed(seed)
    made = OptionHead(SPACE, 5, hidden=4).double()
    for weight in made.parameters():
        torch.nn.init.normal_(weight)
    made.fit_scaler(torch.randn(5, dtype=torch.float64), torch.rand(5, dtype=torch.float64) + 0.5)
    made.scale_F[seed % 5] = torch.inf  # a constant feature is left out by its own head alone
    return made


@settings(max_examples=20)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=4))
def test_it_says_the_mean_of_what_its_heads_say(seeds: list[int]) -> None:
    heads, feature_NF = [head(seed) for seed in seeds], torch.randn(7, 5, dtype=torch.float64)
    mean_NK = torch.stack([one(feature_NF) for one in heads]).mean(0).log_softmax(-1)
    torch.testing.assert_close(merged(heads, SPACE)(feature_NF), mean_NK, rtol=0, atol=1e-12)
