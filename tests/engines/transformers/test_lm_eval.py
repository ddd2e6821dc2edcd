"""lm-evaluation-harness on an attached model: a client that passes sampling arguments with every request."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

import latentknobs as lk
from latentknobs import testbed
from latentknobs.engines.transformers import Attached
from latentknobs.engines.transformers.settings import announce
from latentknobs.errors import DecodingError
from latentknobs.policies import ConstantPolicy

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'latentknobs[clients]'")

ROWS = 6
TASK = """
task: local_continuations
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_text: prompt
doc_to_target: answer
generation_kwargs: {{until: ["@@"], do_sample: true, temperature: 0.7, max_gen_toks: 12}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task with rows of its own: nothing is downloaded."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    rows = tmp_path / "rows.jsonl"
    prompts = [{"prompt": row["prompt"], "answer": ""} for row in testbed.prompts("mixture", "train", ROWS)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in prompts))
    (tmp_path / "task.yaml").write_text(TASK.format(rows=rows))
    return tmp_path


def responses(model: Any, folder: Path) -> list[str]:
    """What the harness got for each row."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_path=str(folder), include_defaults=False)
    client = HFLM(pretrained=model, tokenizer=testbed.load_tokenizer(), batch_size=4, device="cpu")
    found = simple_evaluate(client, tasks=["local_continuations"], task_manager=tasks, log_samples=True, bootstrap_iters=0)
    assert found is not None
    return [sample["resps"][0][0] for sample in sorted(found["samples"]["local_continuations"], key=lambda one: one["doc_id"])]


def constant(temperature: float) -> ConstantPolicy:
    return ConstantPolicy(lk.KnobSpace.of({"temperature": [temperature]}), 0)


def test_the_harness_is_refused_in_our_words(folder: Path) -> None:
    model = testbed.load_model()
    with Attached(model, constant(1.5)), pytest.raises(DecodingError, match=r"temperature=0\.7.*sampling_arguments='override'"):
        responses(model, folder)


def test_the_harness_decodes_with_the_policy(folder: Path) -> None:
    model, tokenizer, found = testbed.load_model(), testbed.load_tokenizer(), {}
    newest: list[Any] = []
    announce.cache_clear()
    for temperature in (0.0, 1.5):
        with Attached(model, constant(temperature), sampling_arguments="override") as knobs:
            attached = model.generate

            def kept(*args: Any, attached: Any = attached, **kwargs: Any) -> Any:
                newest[:] = [attached(*args, **kwargs), kwargs["input_ids"].shape[1]]
                return newest[0]

            model.generate = kept
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                found[temperature] = responses(model, folder)
            record = knobs.record(*newest)
        del model.generate
        about = [str(one.message) for one in said if "the attached policy chooses instead" in str(one.message)]
        assert len(about) == (temperature == 0.0), "said once"
        assert record.ignored == ("temperature",) and record.logps_BT.isfinite().all()
    for row, cold in zip(testbed.prompts("mixture", "train", ROWS), found[0.0], strict=True):
        ids = tokenizer(row["prompt"], return_tensors="pt")["input_ids"]
        out = model.generate(ids, do_sample=False, max_new_tokens=12)
        assert cold == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    assert sum(cold != warm for cold, warm in zip(found[0.0], found[1.5], strict=True)) > ROWS // 2
