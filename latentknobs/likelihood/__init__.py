"""log P(y | option): what every loss needs from the language model, and the logits an option really samples from."""

from latentknobs.likelihood.reference import apply_options, apply_values, option_logps

__all__ = ["apply_options", "apply_values", "option_logps"]
