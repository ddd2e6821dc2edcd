"""log P(y | option): what every loss needs from the language model, and the logits an option really samples from.

These are the fast paths; `reference` holds the slow obvious definitions that they are tested against.
"""

from latentknobs.likelihood.apply import apply_options, apply_values
from latentknobs.likelihood.table import option_logps

__all__ = ["apply_options", "apply_values", "option_logps"]
