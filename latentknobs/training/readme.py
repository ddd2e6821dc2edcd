"""The `README.md` of a run directory: what its files hold."""

from pathlib import Path

from latentknobs.config import SHORT, TrainConfig, make_config, read_yaml
from latentknobs.errors import LatentKnobsError
from latentknobs.progress import say

FILES = (
    ("`config.yaml`", "every setting; `latentknobs train --config config.yaml` runs it again"),
    ("`round-N/prompts.jsonl`", "the prompts of the round, their tokens, and their other columns"),
    ("`round-N/rollouts/`", "sampled responses: index of the prompt, token ids, the option of each token, text"),
    ("`round-N/drift.jsonl`", "how far an engine that samples in another program is from a reading"),
    ("`unfinished/`", "responses of files of rollouts that are not complete yet"),
    ("`round-N/scores/`", "their rewards, line by line; null where the reward failed"),
    (
        "`round-N/examples.jsonl`",
        "what is learned from, as line numbers of all rollouts from 0; for lpo, chosen, rejected",
    ),
    ("`round-N/features/`", "what the head is trained on: features and likelihood tables of the examples"),
    ("`round-N/heads/`", "the learned head and its rival, which sees no hidden states"),
    ("`metrics.jsonl`", "loss of every step, validation of about every twentieth part of them"),
    ("`tuning/`, `choice/`", "responses of constants and of what the adapter may hold to dev prompts, and their scores"),
    ("`evaluation/`, `controls/`", "responses of every policy to held-out prompts, their scores, and `summary.json`"),
    ("`budget-*/`", "the same under each budget of a learner on policy that has several; `evaluation/budgets.json`"),
    ("`adapter/`", "the result: `latentknobs.KnobAdapter.from_pretrained(...)`"),
    ("`report.html`", "the same for people"),
    ("`reward_cache/`", "scores that need not be computed again; may be deleted"),
    ("`manifest.jsonl`", "finished files with hashes of their content; a changed setting redoes only what depends on it"),
)


def write_readme(path: Path) -> None:
    """Writes `README.md` into a run directory."""
    lines = ["# A latentknobs run", "", "| file | what |", "|---|---|", *(f"| {file} | {what} |" for file, what in FILES)]
    (path / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def say_changes(path: Path, config: TrainConfig) -> None:
    """Says which settings differ from those of an earlier run in the same directory: what depends on them is computed again."""
    try:
        before = make_config(read_yaml(path / "config.yaml"))
    except LatentKnobsError:  # there is none, or one of another version
        return
    old, new = before.flat(), config.flat()
    names = [name for name in new if old.get(name) != new[name] and name != "output_dir"]
    changed = [f"{name} {SHORT.repr(old.get(name))} -> {SHORT.repr(new[name])}" for name in names]
    if changed:
        say(f"{str(path)!r} holds a run with other settings ({'; '.join(changed)}): what depends on them is computed again")
