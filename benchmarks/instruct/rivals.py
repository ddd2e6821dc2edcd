"""Variants of heads on the instruct model, and what they have to beat: constants and rules, tuned on training prompts."""

from typing import Any

from benchmarks.instruct.tasks import MANY, MORE

COLD_HOT = "temperature:0,0.4,0.8,1,1.2,1.5"  # two cold options, and hotter than any constant that is worth it
PAPER = "temperature:0,0.2,0.4,0.6,0.8,1"
PORTABLE = ("entropy", "max_prob", "top5_mass", "log_collision", "margin")
REINFORCE = {"knobs": COLD_HOT, "learner": "reinforce", "steps": 16, "pairs_per_step": 64, "learning_rate": 1e-2}
FEW_PROMPTS = REINFORCE | {"steps": 48, "schedule": "linear", "alone": True}
QUICK = FEW_PROMPTS | {"steps": 16, "breadth": MORE, "train_prompts": 256}
LARGE = REINFORCE | {
    "steps": 100, "pairs_per_step": 256, "batch_size": 256, "learning_rate": 3e-3, "schedule": "linear", "alone": True,
    "breadth": MANY, "train_prompts": 4096,
}  # fmt: skip
IMITATION = FEW_PROMPTS | {
    "steps": 32, "learning_rate": 3e-3, "breadth": MANY, "train_prompts": 4096,
    "imitate": "sentence_start:cold=0,hot=1,after=.!?",  # the best rule on training prompts
}  # fmt: skip
# Settings of `train`, and two of ours. alone: without a rival head, which would sample as much again. breadth: of `Task.rows`.
VARIANTS: dict[str, dict[str, Any]] = {
    "lpo": {"knobs": COLD_HOT},
    "statistics": {"knobs": COLD_HOT, "features": PORTABLE},
    "sequence": {"knobs": COLD_HOT, "level": "sequence"},
    "paper-grid": {"knobs": PAPER},
    "joint": {"knobs": [COLD_HOT, "min_p:0,0.1"]},
    "soft": {"knobs": COLD_HOT, "beta": 0.3},
    "pairs": {"knobs": COLD_HOT, "pairs_per_prompt": 4},
    "margin": {"knobs": COLD_HOT, "pairs_per_prompt": 4, "pair_weight": "margin"},
    "more": {"knobs": COLD_HOT, "rollouts": 32},
    "rounds": {"knobs": COLD_HOT, "rounds": 2},
    "reinforce": REINFORCE,
    "reinforce-short": REINFORCE | {"steps": 8},
    "reinforce-statistics": REINFORCE | {"features": PORTABLE},
    "reinforce-joint": REINFORCE | {"knobs": [COLD_HOT, "min_p:0,0.1"]},
    "reinforce-long": REINFORCE | {"steps": 64},
    "reinforce-slow": REINFORCE | {"learning_rate": 3e-3, "steps": 32},
    "reinforce-alone": REINFORCE | {"alone": True},
    "reinforce-few": FEW_PROMPTS,
    "reinforce-few-sequence": FEW_PROMPTS | {"level": "sequence"},
    "reinforce-few-statistics": FEW_PROMPTS | {"features": PORTABLE},
    "reinforce-many": FEW_PROMPTS | {"breadth": MORE, "train_prompts": 256},
    "reinforce-many-joint": FEW_PROMPTS | {"breadth": MORE, "train_prompts": 256, "knobs": [COLD_HOT, "min_p:0,0.1"]},
    "reinforce-quick": QUICK,
    "reinforce-large": LARGE,
    "reinforce-large-explore": LARGE | {"entropy_bonus": 0.1},
    "reinforce-large-statistics": LARGE | {"features": PORTABLE},
    "imitation": IMITATION | {"steps": 1, "learning_rate": 1e-9},
    "reinforce-imitation": IMITATION,
    "reinforce-alone-statistics": REINFORCE | {"alone": True, "features": PORTABLE},
    "reinforce-score": REINFORCE | {"estimator": "score"},
    "separate": {"knobs": COLD_HOT, "objective": "tokens_separate"},
    "printed": {"knobs": COLD_HOT, "objective": "tokens_printed"},
    "nll": {"knobs": COLD_HOT, "objective": "nll"},
    "preference": {"knobs": "temperature", "learner": "end_to_end", "objective": "preference"},
    "reward-weighted": {"knobs": "temperature", "learner": "end_to_end", "objective": "reward_weighted"},
    "likelihood": {"knobs": "temperature", "learner": "end_to_end", "objective": "likelihood"},
}
CONSTANTS = [
    *(f"constant:temperature={t}" for t in (0, 0.2, 0.4, 0.6, 0.8, 1, 1.2)),
    *(f"constant:temperature={t},min_p={p}" for t in (0.8, 1, 1.2, 1.5) for p in (0.05, 0.1, 0.2)),
    *(f"constant:temperature=1,top_p={p}" for p in (0.8, 0.9, 0.95)),
]
AFTER = {"sentences": ".!?", "lines": ".\n!", "items": "."}  # characters after which a hand rule says: a part begins
COLD_FIRST = [(0, h, p) for h in (0.4, 0.6, 0.8, 1, 1.2, 1.5) for p in (0, 0.1, 0.2)] + [(0.4, 1, 0), (0.4, 1.2, 0.1)]
HOT_FIRST = [(h, c, p) for h in (0.8, 1, 1.2, 1.5) for c in (0, 0.4) for p in (0, 0.1)]
ENTROPY = [f"edt:base={b},theta={t}" for b in (1, 1.4) for t in (0.3, 1, 3)] + [
    f"dynatemp:low={low},high={high}" for low in (0, 0.4) for high in (1, 1.5, 2)
]
LAST = ["uniform:temperature=0,0.4,0.8,1,1.2,1.5"]


def rules(kind: str) -> list[str]:
    """Hand rules: one temperature where a part begins, another elsewhere, with min-p too; and rules of the entropy."""
    made = [
        f"sentence_start:cold={at},hot={inside}" + (f",min_p={low}" if low else "") + f",after={AFTER[kind]}"
        for at, inside, low in (HOT_FIRST if kind == "items" else COLD_FIRST)
    ]
    return [*made, *ENTROPY, "mirostat:tau=3", "mirostat:tau=5"]
