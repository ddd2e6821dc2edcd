"""Reading a frozen LM: the right hidden states and logits for each response token, whatever the batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, VOCAB, WIDTH
from torch import nn

from latentknobs.engines.transformers.frozen import context_length, hidden_size, output_embeddings, read_responses, tapped
from latentknobs.errors import AdapterError

every_family = pytest.mark.parametrize("family", FAMILIES)
tokens = st.integers(3, VOCAB - 1)
texts = st.lists(st.tuples(st.lists(tokens, min_size=1, max_size=4), st.lists(tokens, max_size=5)), min_size=1, max_size=4)


@every_family
@settings(max_examples=10)
@given(rows=texts)
def test_each_token_gets_the_state_and_logits_from_which_it_was_sampled(
    lms: dict[str, nn.Module], family: str, rows: list[tuple[list[int], list[int]]]
) -> None:
    """Row by row, prefix by prefix, the plain model says the same: padding and later tokens do not show."""
    model = lms[family]
    prompts, responses = [p for p, _ in rows], [r for _, r in rows]
    read = list(read_responses(model, prompts, responses))
    assert len(read) == len(rows)
    for (hidden_TD, logits_TV), prompt, response in zip(read, prompts, responses, strict=True):
        assert hidden_TD.shape == (len(response), WIDTH) and logits_TV.shape == (len(response), VOCAB)
        for t in range(len(response)):
            with torch.no_grad():
                ids_1L = torch.tensor([prompt + response[:t]])
                assert torch.allclose(logits_TV[t], model(input_ids=ids_1L).logits[0, -1], atol=2e-5)
                assert torch.allclose(hidden_TD[t], model.base_model(input_ids=ids_1L).last_hidden_state[0, -1], atol=2e-5)


@every_family
def test_the_tap_reads_the_input_of_the_output_embeddings_and_leaves_nothing_behind(
    lms: dict[str, nn.Module], family: str
) -> None:
    model = lms[family]
    head = output_embeddings(model)
    with pytest.raises(ZeroDivisionError), tapped(model) as cell:
        model(input_ids=torch.tensor([[3, 4, 5]]))
        expected_BSD = model.base_model(input_ids=torch.tensor([[3, 4, 5]])).last_hidden_state
        assert torch.allclose(cell["hidden"], expected_BSD, atol=1e-6) and not cell["hidden"].requires_grad
        _ = 1 / 0
    assert not head._forward_pre_hooks


def test_logits_come_from_the_model_not_from_the_output_embeddings(lms: dict[str, nn.Module]) -> None:
    """Gemma 2 caps them afterwards; multiplying hidden states by the embeddings would miss that."""
    model = lms["gemma2"]
    ((hidden_TD, logits_TV),) = read_responses(model, [[3]], [[4, 5]])
    cap = model.config.final_logit_softcapping
    assert logits_TV.abs().max() <= cap
    assert torch.allclose(logits_TV, cap * torch.tanh(output_embeddings(model)(hidden_TD) / cap), atol=1e-5)
    assert output_embeddings(model)(hidden_TD).abs().max() > cap


@every_family
def test_sizes_are_read_from_any_family(lms: dict[str, nn.Module], family: str) -> None:
    assert hidden_size(lms[family]) == WIDTH
    assert context_length(lms[family]) == 128


def test_nothing_read_carries_a_gradient(lm: nn.Module) -> None:
    ((hidden_TD, logits_TV),) = read_responses(lm, [[3]], [[4]])
    assert not hidden_TD.requires_grad and not logits_TV.requires_grad


def test_a_model_without_output_embeddings_is_no_causal_lm(lm: nn.Module) -> None:
    for body in (lm.model, nn.Linear(2, 2)):
        with pytest.raises(AdapterError, match=rf"{type(body).__name__} has no output embeddings.*causal LM"):
            output_embeddings(body)
