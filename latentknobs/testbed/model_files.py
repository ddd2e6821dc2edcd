"""Load the packaged model and tokenizer, from the package's own files only."""

from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

MODEL_DIR = Path(__file__).parent / "model"


def load_model() -> LlamaForCausalLM:
    """The packaged LM (about 1.4 million parameters, stored as float16) in float32, on the CPU, in eval mode, frozen."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # 3 MB need no bar
    try:
        model = LlamaForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32, local_files_only=True)
    finally:
        if shown:
            logging.enable_progress_bar()
    model.config._name_or_path = "testbed"  # what adapters remember: the same on every machine
    return model.eval().requires_grad_(False)


def load_tokenizer() -> PreTrainedTokenizerFast:
    """Its tokenizer: pads on the left, puts `<s>` in front, ends with `</s>`."""
    return AutoTokenizer.from_pretrained(MODEL_DIR, padding_side="left", local_files_only=True)
