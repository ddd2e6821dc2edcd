"""The optimisation stage of a round: the learned module and its rival, which sees no hidden states."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from latentknobs.config import TrainConfig
from latentknobs.data.disk import save_tensors
from latentknobs.data.examples import Example
from latentknobs.data.segment_batches import Features
from latentknobs.errors import RunError
from latentknobs.heads.option_head import SIZING
from latentknobs.learners.base import Learner
from latentknobs.progress import Advance
from latentknobs.training.checkpoint import Checkpoint, remove_checkpoint
from latentknobs.training.fit import fit
from latentknobs.training.rundir import RunDir, Task, explained

MAIN, RIVAL = "main", "rival"  # the module on the run's features, and the same kind on statistics of the logits alone


@dataclass
class Modules:
    """The modules after a round."""

    main: nn.Module  # the learned module
    rival: nn.Module  # the same learner's module that reads statistics of the logits alone
    key: str  # digest of the weights of `main`, for what depends on them


class Lesson(Protocol):
    """How one part of a round is trained."""

    def moments(self, part: str) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the features that its module reads."""

    def learn(self, part: str, module: nn.Module, checkpoint: Checkpoint, log: Callable[[dict[str, Any]], None]) -> nn.Module:
        """Trains the module in place, from the checkpoint on, logging a row for each step, and returns it."""


class Fitting:
    """Trains the modules of one round, or reads those that are finished; `learners` are `main` and `rival`."""

    def __init__(
        self, run: RunDir, config: TrainConfig, learners: Mapping[str, Learner], round_number: int, device: torch.device,
        previous: Modules | None,
    ) -> None:  # fmt: skip
        self.run, self.config, self.learners, self.round = run, config, learners, round_number
        self.device, self.previous = device, previous

    def modules(self, lesson: Lesson, key: str, fresh: bool = False) -> Modules:
        """The modules after this round.

        Args:
            key: digest of what the lesson is about.
            fresh: train again although there is a result.
        """
        version, before = self.learners[MAIN].version, self.previous.key if self.previous else ""
        key = self.config.digest("fit", f"{key} {version} {before} {SIZING}")
        # Later rounds are sampled by the main module: off-policy for the rival, which keeps its first fit.
        parts = [MAIN] if self.previous else [MAIN, RIVAL]

        def task(part: str) -> Task:
            def make(path: Path, advance: Advance) -> None:
                save_tensors(self._fit(part, lesson, f"{key} {part}", advance, fresh).state_dict(), path)

            return Task(f"round-{self.round}/heads/{part}.safetensors", f"{key} {part}", make, self.config.steps, fresh)

        paths = self.run.stage(f"round-{self.round}/heads", [task(part) for part in parts], together=True)
        for part in parts if self.run.processes.is_main else ():
            remove_checkpoint(self._checkpoint(part))
        main, *others = (self._load(part, path) for part, path in zip(parts, paths, strict=True))
        rival = self.previous.rival if self.previous else others[0]
        return Modules(main, rival, " ".join(self.run.content(paths[:1])))

    def _new(self, part: str, mean_F: Tensor, std_F: Tensor) -> nn.Module:
        """The module at the beginning of its training, from the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            return self.learners[part].module(mean_F, std_F).to(self.device)

    def _fit(self, part: str, lesson: Lesson, key: str, advance: Advance, fresh: bool) -> nn.Module:
        if fresh and self.run.processes.is_main:
            remove_checkpoint(self._checkpoint(part))
        self.run.processes.barrier()
        checkpoint = Checkpoint(self._checkpoint(part), key)
        module = self._new(part, *lesson.moments(part))
        if self.previous is not None:
            module.load_state_dict(self.previous.main.state_dict())
        done, mine = checkpoint.step(), {"round": self.round, "head": part}
        self.run.forget_metrics(lambda row: mine.items() <= row.items() and row["step"] > done)
        advance(done)

        def log(row: dict[str, Any]) -> None:
            self.run.log(mine | row)
            advance(1)

        with explained(self.run.path, "a checkpoint"):
            return lesson.learn(part, module, checkpoint, log)

    def _checkpoint(self, part: str) -> Path:
        return self.run.path / f"round-{self.round}" / f"checkpoint-{part}.safetensors"

    def _load(self, part: str, path: Path) -> nn.Module:
        try:
            tensors = load_file(path)
            module = self._new(part, torch.zeros_like(tensors["shift_F"]), torch.ones_like(tensors["shift_F"]))
            # the scale of a feature that never varied is infinite
            finite = {name: (value > 0) if name == "scale_F" else value.isfinite() for name, value in tensors.items()}
            if strange := [name for name, is_finite in finite.items() if not is_finite.all()]:
                raise ValueError(f"{strange[0]} is not finite")
            module.load_state_dict(tensors)
        except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
            why = " ".join(str(error).split())[:300]
            raise RunError(
                f"{str(path)!r} is not a head of this run: {why}. Delete it and give the same command again."
            ) from None
        return module.eval()


@dataclass(frozen=True)
class FromFiles:
    """The lesson of learners that learn from the files of a round."""

    run: RunDir
    config: TrainConfig
    learners: Mapping[str, Learner]
    store: Features  # of the features of `main`, then of `rival`
    train: Sequence[Example]
    held_out: Sequence[Example]  # train, held_out: examples, of responses of the store
    reference: nn.Module | None  # the module that explored

    def seen(self, part: str) -> Features:
        """The store with the features that a part reads."""
        last = len(self.store.moments()[0]) - len(self.learners[RIVAL].inputs.features)  # each of its features is one number
        return self.store.select(slice(0, last) if part == MAIN else slice(last, None))

    def moments(self, part: str) -> tuple[Tensor, Tensor]:
        """Over all segments of the store."""
        return self.seen(part).moments()

    def learn(self, part: str, module: nn.Module, checkpoint: Checkpoint, log: Callable[[dict[str, Any]], None]) -> nn.Module:
        """See `Lesson`."""
        return fit(
            self.learners[part], module, self.seen(part), self.train, self.held_out, self.config, reference=self.reference,
            log=log, checkpoint=checkpoint, processes=self.run.processes,
        )  # fmt: skip
