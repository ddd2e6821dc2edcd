"""An evaluation that was ended goes on when the same call is made again, and trusts no score that may have changed."""

from typing import Any

import numpy as np
import pytest
import torch

import latentknobs as lk
import latentknobs.training.evaluate as evaluating
from latentknobs import testbed
from latentknobs.adapter import describe_model
from latentknobs.engines.transformers import TransformersEngine
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import parse_level
from latentknobs.training.evaluate import UNFINISHED
from latentknobs.training.processes import Processes
from latentknobs.training.rundir import RunDir

SMALL = {"seeds": 1, "train_prompts": 8, "eval_size": 6, "tune_size": 4, "max_new_tokens": 8}


class Counted:
    """A reward, the length times `scale`, that ends the program at its n-th call."""

    def __init__(self, ends_at: int = 10_000, scale: float = 1.0, version: str | None = "1") -> None:
        self.left, self.scale, self.calls = ends_at, scale, 0
        self.__name__ = "counted"
        if version is not None:
            self.version = version

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        self.calls += 1
        if self.calls == self.left:
            raise KeyboardInterrupt
        return [self.scale * len(text) for text in completions]


@pytest.fixture(scope="module")
def adapter() -> lk.KnobAdapter:
    model, space = testbed.load_model(), lk.KnobSpace.of("temperature:0,1")
    head = OptionHead(space, model.config.hidden_size, 8)
    return lk.KnobAdapter(space, head, parse_level("token"), ("hidden",), describe_model(model))


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many responses each call of the engine samples."""
    counts, sample = [], TransformersEngine.sample

    def spy(self: Any, prompts: Any, *args: Any, **how: Any) -> Any:
        counts.append(len(prompts))
        return sample(self, prompts, *args, **how)

    monkeypatch.setattr(TransformersEngine, "sample", spy)
    return counts


def test_an_ended_evaluation_goes_on_and_says_the_same(
    adapter: lk.KnobAdapter, sampled: list[int], tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = lk.evaluate(adapter, reward=(reward := Counted()), output_dir=tmp_path / "whole", **SMALL)
    total, calls = sum(sampled), reward.calls
    assert not (tmp_path / "whole" / UNFINISHED).exists() and calls > 4
    sampled.clear()
    with pytest.raises(KeyboardInterrupt):
        lk.evaluate(adapter, reward=Counted(ends_at=calls - 1), output_dir=tmp_path / "ended", **SMALL)
    before = sum(sampled)
    assert "that was ended" not in capsys.readouterr().err
    assert before > 0 and (tmp_path / "ended" / UNFINISHED).exists()
    again = lk.evaluate(adapter, reward=(reward := Counted()), output_dir=tmp_path / "ended", **SMALL)
    assert sum(sampled) == total and reward.calls < calls, "nothing is sampled twice"
    assert "An evaluation that was ended left responses in" in capsys.readouterr().err
    assert again.rewards.keys() == whole.rewards.keys()
    assert all(np.array_equal(again.rewards[name], whole.rewards[name]) for name in whole.rewards)
    assert not (tmp_path / "ended" / UNFINISHED).exists()
    for name in ("summary.json", "responses.jsonl"):
        files = [next((tmp_path / folder).rglob(name)) for folder in ("whole", "ended")]
        assert files[0].read_bytes() == files[1].read_bytes(), name


def test_scores_of_a_reward_without_a_version_are_computed_again(
    adapter: lk.KnobAdapter, sampled: list[int], tmp_path: Any
) -> None:
    with pytest.raises(KeyboardInterrupt):
        lk.evaluate(adapter, reward=Counted(ends_at=5, version=None), output_dir=tmp_path / "ended", **SMALL)
    found = lk.evaluate(adapter, reward=Counted(scale=3.0, version=None), output_dir=tmp_path / "ended", **SMALL)
    fresh = lk.evaluate(adapter, reward=Counted(scale=3.0, version=None), output_dir=tmp_path / "fresh", **SMALL)
    assert all(np.array_equal(found.rewards[name], fresh.rewards[name]) for name in fresh.rewards)


def test_responses_of_another_model_are_not_taken_over(adapter: lk.KnobAdapter, tmp_path: Any) -> None:
    other = testbed.load_model()
    with torch.no_grad():
        other.get_input_embeddings().weight.mul_(1.5)
    same = {"tokenizer": testbed.load_tokenizer(), "prompts": "testbed:stories"} | SMALL
    with pytest.raises(KeyboardInterrupt):
        lk.evaluate(adapter, model=testbed.load_model(), reward=Counted(ends_at=3), output_dir=tmp_path / "ended", **same)
    found = lk.evaluate(adapter, model=other, reward=Counted(), output_dir=tmp_path / "ended", **same)
    fresh = lk.evaluate(adapter, model=other, reward=Counted(), **same)
    assert all(np.array_equal(found.rewards[name], fresh.rewards[name]) for name in fresh.rewards)


def test_scores_that_failed_are_asked_for_again(adapter: lk.KnobAdapter, sampled: list[int], tmp_path: Any) -> None:
    class Down(Counted):
        def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
            self.calls += 1
            if self.calls > self.left:
                raise OSError("the judge is down")
            return [self.scale * len(text) for text in completions]

    with pytest.raises(lk.errors.RewardError):
        lk.evaluate(adapter, reward=Down(ends_at=4), output_dir=tmp_path / "down", **SMALL)
    before = sum(sampled)
    found = lk.evaluate(adapter, reward=Down(), output_dir=tmp_path / "down", **SMALL)
    between = sum(sampled) - before
    fresh = lk.evaluate(adapter, reward=Counted(), **SMALL)
    assert found.left_out == 0 and between < sum(sampled) - before - between, "responses are kept, failures are not"
    assert all(np.array_equal(found.rewards[name], fresh.rewards[name]) for name in fresh.rewards)


def test_a_report_that_cannot_be_written_keeps_the_responses(
    adapter: lk.KnobAdapter, sampled: list[int], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(lk.errors.RunError, match="is full"):
        patch.setattr(evaluating, "write_report", full)
        lk.evaluate(adapter, reward=Counted(), output_dir=tmp_path / "full", **SMALL)
    sampled.clear()
    lk.evaluate(adapter, reward=Counted(), output_dir=tmp_path / "full", **SMALL)
    assert not sampled and (tmp_path / "full" / "report.html").exists()


def test_processes_of_a_launcher_share_nothing(adapter: lk.KnobAdapter, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with RunDir(tmp_path / UNFINISHED, processes=Processes(alone=True)):
        lk.evaluate(adapter, reward=Counted(), output_dir=tmp_path, **SMALL)
    assert (tmp_path / "report.html").exists()


def test_two_evaluations_do_not_share_a_folder(adapter: lk.KnobAdapter, tmp_path: Any) -> None:
    with (
        RunDir(tmp_path / "shared" / UNFINISHED),
        pytest.raises(lk.errors.RunError, match=r"Another run is working in .*unfinished"),
    ):
        lk.evaluate(adapter, reward=Counted(), output_dir=tmp_path / "shared", **SMALL)
