"""Prompts, rollouts, pairs, and the cache that heads are trained on."""

from latentknobs.data.prompts import Prompt, make_prompts
from latentknobs.data.rollouts import Rollout, roll_out
from latentknobs.data.scores import score_rollouts
from latentknobs.learners.lpo.pairs import Pair, pick_pairs

__all__ = ["Pair", "Prompt", "Rollout", "make_prompts", "pick_pairs", "roll_out", "score_rollouts"]
