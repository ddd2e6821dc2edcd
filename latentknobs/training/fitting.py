"""The optimisation stage of a round: the learned head and the entropy-only baseline, on the same pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from latentknobs.config import TrainConfig
from latentknobs.data.disk import save_tensors
from latentknobs.data.segment_batches import Features
from latentknobs.heads.option_head import SIZING, OptionHead
from latentknobs.knobs.space import KnobSpace
from latentknobs.learners.lpo.pairs import Pair
from latentknobs.progress import Advance
from latentknobs.training.checkpoint import Checkpoint, remove_checkpoint
from latentknobs.training.optimise import fit_head
from latentknobs.training.rundir import RunDir, Task, explained

PARTS = {"main": slice(0, -1), "entropy": slice(-1, None)}  # which features each head sees


@dataclass
class Heads:
    """The learned head and the entropy-only baseline.

    Attributes:
        key: digest of the learned head's weights, for what depends on them.
    """

    main: OptionHead
    entropy: OptionHead
    key: str


class Fitting:
    """Trains the heads of one round, or reads those that are finished."""

    def __init__(
        self, run: RunDir, config: TrainConfig, space: KnobSpace, round_number: int, device: torch.device, previous: Heads | None
    ) -> None:  # fmt: skip
        self.run, self.config, self.space, self.round = run, config, space, round_number
        self.device, self.previous = device, previous

    def heads(self, features: Features, train: Sequence[Pair], held_out: Sequence[Pair], key: str) -> Heads:
        """The heads after this round.

        Args:
            train, held_out: `chosen` and `rejected` index responses of `features`.
            key: digest of the features and the pairs.
        """
        key = self.config.digest("fit", f"{key} {self.previous.key if self.previous else ''} {SIZING}")
        # Later rounds are sampled by the main head: off-policy for the baseline, which keeps its first fit.
        parts = ["main"] if self.previous else ["main", "entropy"]

        def task(part: str) -> Task:
            def make(path: Path, advance: Advance) -> None:
                save_head(self._fit(part, features, train, held_out, key, advance), path)

            return Task(f"round-{self.round}/heads/{part}.safetensors", f"{key} {part}", make, self.config.steps)

        paths = self.run.stage(f"round-{self.round}/heads", [task(part) for part in parts], together=True)
        for part in parts if self.run.processes.is_main else ():
            remove_checkpoint(self._checkpoint(part))
        entropy = self.previous.entropy if self.previous else self._load(paths[1])
        return Heads(self._load(paths[0]), entropy, " ".join(self.run.content(paths[:1])))

    def _fit(
        self, part: str, features: Features, train: Sequence[Pair], held_out: Sequence[Pair], key: str, advance: Advance
    ) -> OptionHead:
        seen = features.columns(PARTS[part])
        before = getattr(self.previous, part) if self.previous else None
        torch.manual_seed(self.config.seed)
        mean_F, std_F = seen.moments()
        head = OptionHead(self.space, len(mean_F), self.config.hidden, self.config.factorised, self.config.rank).to(self.device)
        if before is None:
            head.fit_scaler(mean_F, std_F)
        else:
            head.load_state_dict(before.state_dict())
        checkpoint = Checkpoint(self._checkpoint(part), f"{key} {part}")
        done = checkpoint.step()
        mine = {"round": self.round, "head": part}
        self.run.forget_metrics(lambda row: mine.items() <= row.items() and row["step"] > done)
        advance(done)

        def log(row: dict[str, Any]) -> None:
            self.run.log(mine | row)
            advance(1)

        with explained(self.run.path, "a checkpoint"):
            return fit_head(
                head, seen, train, held_out, self.config, reference=before, log=log, checkpoint=checkpoint,
                processes=self.run.processes,
            )  # fmt: skip

    def _checkpoint(self, part: str) -> Path:
        return self.run.path / f"round-{self.round}" / f"checkpoint-{part}.safetensors"

    def _load(self, path: Path) -> OptionHead:
        return load_head(path, self.space, self.config).to(self.device)


def save_head(head: OptionHead, path: Path) -> None:
    """Writes a head's weights, complete or not at all."""
    save_tensors({name: value.cpu().contiguous() for name, value in head.state_dict().items()}, path)


def load_head(path: Path, space: KnobSpace, config: TrainConfig) -> OptionHead:
    """What `save_head` wrote."""
    tensors = load_file(path)
    head = OptionHead(space, len(tensors["shift_F"]), config.hidden, config.factorised, config.rank)
    head.load_state_dict(tensors)
    return head.eval()
