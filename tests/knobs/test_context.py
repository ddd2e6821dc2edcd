"""Knobs that read more than the logits: what they are given, what others pay, and what happens when it is missing."""

import copy
import pickle
import re
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import ClassifierFreeGuidanceLogitsProcessor

import latentknobs as lk
from latentknobs.errors import DecodingError
from latentknobs.knobs.context import Context
from latentknobs.knobs.knob import ContextKnob
from latentknobs.likelihood.reference import apply_options, apply_values, option_logps
from latentknobs.testing import check_knob


class Guidance(ContextKnob):
    """Classifier-free guidance: second + (first - second) * scale, which transformers' processor computes too."""

    name: ClassVar[str] = "guidance"
    neutral: ClassVar[float] = 1.0
    needs: ClassVar[tuple[str, ...]] = ("second_NV",)
    options: tuple[float, ...] = (1.0, 1.5, 3.0)

    def apply_context(self, logits_NV: Tensor, value_N: Tensor, context: Context) -> Tensor:
        guided_NV = context.second_NV + (logits_NV - context.second_NV) * value_N.unsqueeze(-1)
        keep_NV = (value_N == 1).unsqueeze(-1) | logits_NV.isneginf()
        return torch.where(keep_NV, logits_NV, guided_NV)


class Warmup(ContextKnob):
    """Sharper at the beginning: temperature rises to 1 with the position."""

    name: ClassVar[str] = "warmup"
    neutral: ClassVar[float] = 0.0
    needs: ClassVar[tuple[str, ...]] = ("position_N",)
    options: tuple[float, ...] = (0.0, 2.0)

    def apply_context(self, logits_NV: Tensor, value_N: Tensor, context: Context) -> Tensor:
        return logits_NV * (1 + value_N / (1 + context.position_N)).unsqueeze(-1)


PROMPT, RESPONSE = [3, 1, 4], [1, 5, 2]


def test_the_contexts_of_a_finished_response_hold_what_each_token_could_see() -> None:
    context = Context.of_response(PROMPT, RESPONSE)
    assert context.position_N.tolist() == [0, 1, 2]
    assert [[t for t in row if t >= 0] for row in context.previous_NL.tolist()] == [[3, 1, 4], [3, 1, 4, 1], [3, 1, 4, 1, 5]]


def test_the_contexts_of_a_step_leave_padding_out() -> None:
    ids_BL = torch.tensor([[0, 0, 7, 8], [5, 6, 7, 9]])
    context = Context.of_step(ids_BL, 3, torch.tensor([[0, 0, 1], [1, 1, 1]]))
    assert context.previous_NL.tolist() == [[-1, -1, 7, 8], [5, 6, 7, 9]] and context.position_N.tolist() == [1, 1]
    assert torch.equal(Context.of_step(ids_BL, 3).previous_NL, ids_BL)


@given(st.integers(0, 5), st.integers(1, 6))
def test_teacher_forcing_and_stepping_give_the_same_contexts(prompt: int, response: int) -> None:
    ids = torch.randint(0, 9, (prompt + response,), generator=torch.Generator().manual_seed(prompt * 7 + response)).tolist()
    whole = Context.of_response(ids[:prompt], ids[prompt:])
    for t in range(response):
        step = Context.of_step(torch.tensor([ids[: prompt + t]], dtype=torch.long).view(1, prompt + t), prompt)
        seen = [token for token in whole.previous_NL[t].tolist() if token >= 0]
        assert seen == step.previous_NL[0].tolist() and int(whole.position_N[t]) == int(step.position_N[0])


def test_a_context_is_cut_by_rows_shown_copied_and_pickled() -> None:
    context = Context.of_response(PROMPT, RESPONSE)
    assert torch.equal(context.rows(slice(1, 3)).position_N, torch.tensor([1, 2]))
    assert repr(context) == "Observation(previous_NL (3, 5), position_N (3,))"
    for again in (copy.copy(context), copy.deepcopy(context), pickle.loads(pickle.dumps(context))):
        assert again.parts.keys() == context.parts.keys() and torch.equal(again.previous_NL, context.previous_NL)


def test_what_was_not_given_or_does_not_exist_cannot_be_read() -> None:
    with pytest.raises(AttributeError, match="This observation does not hold 'second_NV'; a knob or a policy reads"):
        _ = Context.of_response(PROMPT, RESPONSE).second_NV
    with pytest.raises(TypeError, match=r"There is no part 'history' of an observation\. Known: previous_NL, position_N"):
        Context(history=torch.zeros(1))


@pytest.mark.parametrize("knob", [Guidance(), Warmup()], ids=lambda knob: knob.name)
def test_knobs_of_context_pass_the_conformance_suite(knob: ContextKnob) -> None:
    check_knob(knob)


def test_guidance_equals_that_of_transformers() -> None:
    logits_NV, second_NV = torch.randn(2, 4, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for scale in (1.5, 3.0):
        theirs_NV = ClassifierFreeGuidanceLogitsProcessor(scale)(torch.zeros(4, 1), torch.cat([logits_NV, second_NV]))
        ours_NV = Guidance().apply_in(logits_NV, torch.full((4,), scale), Context(second_NV=second_NV))
        assert torch.equal(ours_NV, theirs_NV)


def test_a_space_says_what_it_needs_and_plain_spaces_need_nothing() -> None:
    assert lk.KnobSpace.of("temperature", "top_p").needs == ()
    assert lk.KnobSpace.of("temperature", Warmup(), Guidance(), "repetition_penalty").needs == (
        "position_N", "second_NV", "previous_NL")  # fmt: skip


def test_likelihoods_and_logits_of_a_space_with_context_agree_row_by_row() -> None:
    space = lk.KnobSpace.of("repetition_penalty:1,1.3", Warmup(), "temperature:0,0.7,1", "top_p:0.6,1")
    generator = torch.Generator().manual_seed(0)
    logits_NV = torch.randn(300, 9, generator=generator, dtype=torch.float64)
    target_N = torch.randint(0, 9, (300,), generator=generator)
    context = Context(previous_NL=torch.randint(-1, 9, (300, 4), generator=generator), position_N=torch.arange(300))
    table_NK = option_logps(logits_NV, target_N, space, context)
    for k in (0, 5, 13, space.K - 1):
        out_NV = apply_options(logits_NV, space, torch.full((300,), k), context)
        expected_N = out_NV.log_softmax(-1).gather(-1, target_N.unsqueeze(-1)).squeeze(-1)
        assert torch.allclose(table_NK[:, k], expected_N, atol=1e-12)
        alone_V = apply_options(logits_NV[290:291], space, torch.tensor([k]), context.rows(slice(290, 291)))[0]
        assert torch.allclose(alone_V, out_NV[290], atol=1e-12)


def test_a_missing_context_is_an_error_that_names_knob_and_part_unless_every_row_is_neutral() -> None:
    space = lk.KnobSpace.of("repetition_penalty:1,1.3")
    logits_NV = torch.randn(2, 5)
    assert torch.equal(apply_values(logits_NV, space, torch.ones(2, 1)), logits_NV)
    assert torch.equal(space.knobs[0].apply(logits_NV, torch.ones(2)), logits_NV)
    words = (
        "The knob 'repetition_penalty' reads previous_NL, which was not supplied. Pass context=latentknobs.Context(previous_NL="
    )
    for call in (
        lambda: apply_values(logits_NV, space, torch.full((2, 1), 1.3)),
        lambda: apply_values(logits_NV, space, torch.full((2, 1), 1.3), Context(position_N=torch.zeros(2))),
        lambda: space.knobs[0].apply(logits_NV, torch.full((2,), 1.3)),
    ):
        with pytest.raises(DecodingError, match=re.escape(words)):
            call()
