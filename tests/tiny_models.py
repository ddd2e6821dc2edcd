"""Tiny random language models for tests: families that differ where adapters go wrong."""

from typing import Any

import torch
from torch import nn

VOCAB, WIDTH = 24, 16
STOPS = [2, 10, 13, 18, 19, 22]  # ends of sequence: several, so that the rows of a batch end at different times
FAMILIES = ("llama", "gpt2", "gemma2")


def tiny_lm(family: str, seed: int = 0) -> nn.Module:
    """A random causal LM of two layers, whose next-token distributions are peaked enough for truncation to matter.

    Gemma 2 caps its logits *after* the output embeddings, so whoever rebuilds logits from hidden states gets it wrong.
    """
    from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH}
    rotary = {**shape, **ids, "vocab_size": VOCAB, "num_key_value_heads": 1, "max_position_embeddings": 128}
    torch.manual_seed(seed)
    match family:
        case "llama":
            model = LlamaForCausalLM(LlamaConfig(**rotary))
        case "gemma2":
            capped = {"head_dim": 8, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 5.0, "sliding_window": 8}
            model = Gemma2ForCausalLM(Gemma2Config(**rotary, **capped, query_pre_attn_scalar=8))
        case "gpt2":
            model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_positions=128, n_embd=WIDTH, n_layer=2, n_head=2, **ids))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.normal_(std=1.0 if "embed" in name or "wte" in name or "lm_head" in name else 0.3)
    model.generation_config.eos_token_id = STOPS
    return model.eval()


def word_tokenizer() -> Any:
    """A tokenizer of the tiny models' vocabulary: token n is the word `wn`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(VOCAB)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w2")
