"""The optimisation stage of a round: the learned module and its entropy-only baseline, from the same examples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from latentknobs.config import TrainConfig
from latentknobs.data.disk import save_tensors
from latentknobs.data.examples import Example
from latentknobs.data.segment_batches import Features
from latentknobs.errors import RunError
from latentknobs.heads.features import part_of
from latentknobs.heads.option_head import SIZING
from latentknobs.learners.base import Learner
from latentknobs.progress import Advance
from latentknobs.training.checkpoint import Checkpoint, remove_checkpoint
from latentknobs.training.fit import fit
from latentknobs.training.rundir import RunDir, Task, explained

MAIN, BASELINE = "main", "entropy"  # the module on the run's features, and the one on the entropy alone


@dataclass
class Modules:
    """The modules after a round.

    Attributes:
        main: the learned module.
        baseline: the same learner's module that reads the entropy alone.
        key: digest of the weights of `main`, for what depends on them.
    """

    main: nn.Module
    baseline: nn.Module
    key: str


class Fitting:
    """Trains the modules of one round, or reads those that are finished.

    Args:
        learners: by part: `main` and `entropy`.
        stored: names of the features in the store.
    """

    def __init__(
        self, run: RunDir, config: TrainConfig, learners: Mapping[str, Learner], stored: Sequence[str], round_number: int,
        device: torch.device, previous: Modules | None,
    ) -> None:  # fmt: skip
        self.run, self.config, self.learners, self.round = run, config, learners, round_number
        self.stored, self.device, self.previous = stored, device, previous

    def seen(self, features: Features, part: str) -> Features:
        """The store with the features that a part reads."""
        return features.select(part_of(self.stored, self.learners[part].inputs.features, len(features.moments()[0])))

    def modules(self, features: Features, train: Sequence[Example], held_out: Sequence[Example], key: str) -> Modules:
        """The modules after this round.

        Args:
            train, held_out: of responses of `features`.
            key: digest of the features and the examples.
        """
        version, before = self.learners[MAIN].version, self.previous.key if self.previous else ""
        key = self.config.digest("fit", f"{key} {version} {before} {SIZING}")
        # Later rounds are sampled by the main module: off-policy for the baseline, which keeps its first fit.
        parts = [MAIN] if self.previous else [MAIN, BASELINE]

        def task(part: str) -> Task:
            def make(path: Path, advance: Advance) -> None:
                weights = self._fit(part, features, train, held_out, key, advance).state_dict()
                save_tensors({name: value.cpu() for name, value in weights.items()}, path)

            return Task(f"round-{self.round}/heads/{part}.safetensors", f"{key} {part}", make, self.config.steps)

        paths = self.run.stage(f"round-{self.round}/heads", [task(part) for part in parts], together=True)
        for part in parts if self.run.processes.is_main else ():
            remove_checkpoint(self._checkpoint(part))
        main, *others = (self._load(part, path, features) for part, path in zip(parts, paths, strict=True))
        baseline = self.previous.baseline if self.previous else others[0]
        return Modules(main, baseline, " ".join(self.run.content(paths[:1])))

    def _new(self, part: str, features: Features) -> nn.Module:
        """The module at the beginning of its training, from the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            return self.learners[part].module(*features.moments()).to(self.device)

    def _fit(
        self, part: str, features: Features, train: Sequence[Example], held_out: Sequence[Example], key: str, advance: Advance
    ) -> nn.Module:
        seen = self.seen(features, part)
        before = self.previous.main if self.previous else None
        module = self._new(part, seen)
        if before is not None:
            module.load_state_dict(before.state_dict())
        checkpoint = Checkpoint(self._checkpoint(part), f"{key} {part}")
        done = checkpoint.step()
        mine = {"round": self.round, "head": part}
        self.run.forget_metrics(lambda row: mine.items() <= row.items() and row["step"] > done)
        advance(done)

        def log(row: dict[str, Any]) -> None:
            self.run.log(mine | row)
            advance(1)

        with explained(self.run.path, "a checkpoint"):
            return fit(
                self.learners[part], module, seen, train, held_out, self.config, reference=before, log=log, checkpoint=checkpoint,
                processes=self.run.processes,
            )  # fmt: skip

    def _checkpoint(self, part: str) -> Path:
        return self.run.path / f"round-{self.round}" / f"checkpoint-{part}.safetensors"

    def _load(self, part: str, path: Path, features: Features) -> nn.Module:
        module = self._new(part, self.seen(features, part))
        try:
            tensors = load_file(path)
            if strange := [name for name, value in tensors.items() if not value.isfinite().all()]:
                raise ValueError(f"{strange[0]} is not finite")
            module.load_state_dict(tensors)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            why = " ".join(str(error).split())[:300]
            raise RunError(
                f"{str(path)!r} is not a head of this run: {why}. Delete it and give the same command again."
            ) from None
        return module.eval()
