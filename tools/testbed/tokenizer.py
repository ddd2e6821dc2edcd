"""The testbed's BPE tokenizer: about a thousand entries, every digit a token of its own, lossless on ASCII text."""

from __future__ import annotations

import string
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD, UNK = "<s>", "</s>", "<pad>", "<unk>"


def train_tokenizer(texts: Iterable[str], vocab_size: int, context: int) -> PreTrainedTokenizerFast:
    """Train on `texts`. Encoding puts `<s>` in front; characters outside ASCII become `<unk>`."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(Regex(r"\n"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[BOS, EOS, PAD, UNK], initial_alphabet=_ascii_alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos_id = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bos_id)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, unk_token=UNK, padding_side="left",
        model_max_length=context, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _ascii_alphabet() -> list[str]:
    """Printable ASCII and the newline, in the byte-level alphabet (which writes space and newline as other letters)."""
    to_alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    printable = string.ascii_letters + string.digits + string.punctuation + " \n"
    return sorted({letter for piece, _ in to_alphabet.pre_tokenize_str(printable) for letter in piece})
