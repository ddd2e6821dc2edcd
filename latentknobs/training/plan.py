"""The stages of a run and their files: what `latentknobs status` needs beside the manifest."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import NonNegativeInt, PositiveInt

from latentknobs.config import TrainConfig
from latentknobs.data.disk import write_text
from latentknobs.errors import RunError
from latentknobs.files import read_json

PLAN = "plan.json"


@dataclass
class Plan:
    """The stages of a run."""

    stages: dict[str, NonNegativeInt]  # name -> items (responses, steps or files); an upper bound until the stage has begun
    processes: PositiveInt  # how many share the work
    settings: str  # digest of the settings; with others, what an earlier run had begun does not count
    begun: dict[str, dict[str, str]] = field(default_factory=dict)  # name -> key of each file, for stages that were reached

    def begin(self, stage: str, keys: Mapping[str, str], items: int) -> None:
        """Notes that a stage was reached, and what it consists of."""
        self.begun.pop(stage, None)  # the stage that a run is in comes last
        self.begun[stage] = dict(keys)
        self.stages[stage] = items

    def responses(self, on_policy: int) -> str:
        """How many responses are sampled, in all and for what, in one sentence; `on_policy` are those of the steps of a fit."""
        counts = {name.removesuffix("/rollouts"): items for name, items in self.stages.items() if name.endswith("/rollouts")}
        counts = {"the steps of the head and its rival": on_policy} | counts
        parts = ", ".join(f"{items:,} for {name}" for name, items in counts.items() if items)
        return f"Responses to sample: at most {sum(counts.values()):,} ({parts})."

    def write(self, folder: Path) -> None:
        """Writes `plan.json`, complete or not at all."""
        write_text(folder / PLAN, json.dumps(asdict(self)) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Plan":
        """What `write` wrote; RunError if there is none, or it is damaged."""
        cure = "Give the output_dir of `latentknobs train`."
        if not (folder / PLAN).is_file():
            raise RunError(f"There is no run in {str(folder)!r}: it has no {PLAN}. {cure}")
        plan: Plan = read_json(folder / PLAN, Plan, RunError, cure)
        heads = all(re.fullmatch(r"round-\d{1,6}/\w+", name) for name in plan.stages if name.endswith("/heads"))
        if not heads or not set(plan.begun) <= set(plan.stages):
            raise RunError(f"{str(folder / PLAN)!r} is damaged: its stages do not fit each other. {cure}")
        return plan


def make_plan(
    folder: Path, config: TrainConfig, prompts: int, evaluation: Mapping[str, int], supplied: int | None, processes: int,
    used: int,
) -> Plan:  # fmt: skip
    """The plan of a run that starts now, with what an earlier run of the same settings had begun.

    Args:
        evaluation: responses of each stage of the evaluation.
        used: most rollouts of a prompt that the learner reads.
        supplied: responses from elsewhere; None where the first round rolls out.
    """
    stages: dict[str, int] = {}
    for number in range(1, config.rounds + 1):
        name = f"round-{number}"
        stages[f"{name}/prompts"] = supplied if supplied is not None and number == 1 else prompts
        if supplied is not None and number == 1:
            stages |= {f"{name}/rollouts": supplied, f"{name}/examples": 1, f"{name}/features": supplied}
        else:
            responses = prompts * config.rollouts
            stages |= {f"{name}/rollouts": responses, f"{name}/scores": responses}
            stages |= {f"{name}/second_scores": responses} if config.second_reward else {}
            stages |= {f"{name}/examples": 1, f"{name}/features": prompts * used}
        stages[f"{name}/heads"] = config.steps * (2 if number == 1 else 1)
    for name, responses in evaluation.items():
        stages |= {f"{name}/rollouts": responses, f"{name}/scores": responses}
    stages |= {"summary": 1} if evaluation else {}
    settings = config.digest()
    try:
        before = Plan.read(folder)
        begun = before.begun if before.settings == settings else {}
    except RunError:
        begun = {}
    return Plan(stages, processes, settings, {name: keys for name, keys in begun.items() if name in stages})
