"""Tokenizers for tests of data: the packaged one, and the same one with a ChatML template and its special tokens."""

import pytest

from latentknobs import testbed

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking %}{{ '<think>\n' }}{% endif %}{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer():
    """The testbed's: no chat template."""
    return testbed.load_tokenizer()


@pytest.fixture(scope="session")
def chatml():
    """A tokenizer with a chat template, whose turns end with the end-of-sequence token and a line break behind it."""
    made = testbed.load_tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>"})
    made.chat_template = CHATML
    return made
