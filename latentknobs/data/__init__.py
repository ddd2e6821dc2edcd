"""Prompts, rollouts, pairs, and the cache that heads are trained on."""

from latentknobs.data.pairs import Pair, pick_pairs
from latentknobs.data.prompts import Prompt, make_prompts
from latentknobs.data.rollouts import Rollout, roll_out
from latentknobs.data.scores import score_rollouts

__all__ = ["Pair", "Prompt", "Rollout", "make_prompts", "pick_pairs", "roll_out", "score_rollouts"]
