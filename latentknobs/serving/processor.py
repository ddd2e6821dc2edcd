"""The processor that `latentknobs serve` names to vLLM; its workers load the adapters at start."""

from typing import Any

from latentknobs.engines.vllm import policies
from latentknobs.engines.vllm.limits import SETTINGS
from latentknobs.engines.vllm.processor import PolicyProcessor
from latentknobs.serving import base_of, read_picks


class AdapterProcessor(PolicyProcessor):
    """Decodes with the adapters and policies that vLLM's `additional_config` lists by name."""

    def load(self, vllm_config: Any) -> None:
        """Reads every adapter, refusing those of another model."""
        from transformers import AutoTokenizer

        model = vllm_config.model_config
        base, tokenizer = base_of(model.hf_text_config, str(model.model)), AutoTokenizer.from_pretrained(model.tokenizer)
        for name, spec in vllm_config.additional_config[SETTINGS].items():
            policies.register(name, read_picks(spec, base, tokenizer), self.device)
