"""A script as a user writes it: a reward in it that notes every completion it scores. Used by test_paid.py."""

import os
import signal
import sys

import latentknobs as lk

LOG, FOLDER, KILL_AFTER, RESUME = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "resume"
SETTINGS = {
    "knobs": ["temperature:0,0.5,1"], "prompts": "testbed:stories", "train_prompts": 10, "rollouts": 3, "eval_size": 0,
    "max_new_tokens": 8, "batch_size": 8, "shard_size": 8, "hidden": 8, "steps": 4, "pairs_per_step": 4,
}  # fmt: skip


def reward(prompts, completions, **columns):
    """The process ends itself once it has scored so many."""
    with open(LOG, "a", encoding="utf-8") as log:
        log.writelines(f"{text!r}\n" for text in completions)
    with open(LOG, encoding="utf-8") as log:
        if len(log.readlines()) >= KILL_AFTER:
            os.kill(os.getpid(), signal.SIGKILL)
    return [float(len(text) * 7 % 11) for text in completions]


lk.train(reward=reward, output_dir=FOLDER, resume=RESUME, **SETTINGS)
