"""A script as a user writes it: a reward in it, a helper module beside it, every call noted. Used by test_paid.py."""

import os
import signal
import sys

import latentknobs as lk

LOG, FOLDER, KILL_AFTER = sys.argv[1], sys.argv[2], int(sys.argv[3])
SETTINGS = {
    "knobs": ["temperature:0,0.5,1"], "prompts": "testbed:stories", "train_prompts": 10, "rollouts": 3, "eval_size": 0,
    "max_new_tokens": 8, "batch_size": 8, "shard_size": 8, "hidden": 8, "steps": 4, "pairs_per_step": 4,
}  # fmt: skip


def reward(prompts, completions, **columns):
    """Worth what the helper says; the process ends itself when it was asked for so many."""
    import paid_helper

    with open(LOG, "a", encoding="utf-8") as log:
        log.writelines(f"{text!r}\n" for text in completions)
    with open(LOG, encoding="utf-8") as log:
        if int(os.environ["KILL_AFTER"]) <= len(log.readlines()):
            os.kill(os.getpid(), signal.SIGKILL)
    return [paid_helper.worth(text) for text in completions]


os.environ["KILL_AFTER"] = str(KILL_AFTER)
del KILL_AFTER
lk.train(reward=reward, output_dir=FOLDER, **SETTINGS)
