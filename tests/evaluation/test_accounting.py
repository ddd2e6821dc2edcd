"""The account of policies: against sums in Python's own floats, with and without evidence, and for a finished run."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import latentknobs as lk
from latentknobs import testbed
from latentknobs.cli import cli
from latentknobs.config import OBJECT
from latentknobs.data.prompts import make_prompts
from latentknobs.data.rollouts import roll_out
from latentknobs.engines.transformers import TransformersEngine
from latentknobs.errors import ConfigError, RunError
from latentknobs.evaluation.accounting import FILE, TERMS, Account, account_of, join_accounts, read_accounts, token_account
from latentknobs.evaluation.report import GREEDY, HEAD, PER_TASK
from latentknobs.heads.segmenters import Every
from latentknobs.policies import GreedyPolicy, UniformPolicy
from latentknobs.reporting.account import front
from latentknobs.training.judging import read_report

NAMES = ("Tom", "Lily", "Sam", "Mia", "Ben", "Sue")
ROWS = [
    {"prompt": f"Story: {name} has a ball. {name} has", "prompt_without_evidence": f"Story: {name} has", "task": name[-1]}
    for name in NAMES
]
SMALL: dict[str, Any] = {
    "train_prompts": 4, "rollouts": 3, "eval_size": 3, "tune_size": 2, "eval_seeds": 2, "max_new_tokens": 6, "steps": 2,
    "hidden": 8, "pairs_per_step": 4,
}  # fmt: skip
SPACE = lk.KnobSpace.of("temperature:0.5,1", "top_p:0.6,1", "guidance_scale:1,2")


def softmax(row: list[float]) -> list[float]:
    weights = [math.exp(z - max(row)) for z in row]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("has_evidence", [True, False])
def test_the_account_of_a_token_is_its_sums(has_evidence: bool) -> None:
    logits_TV, second_TV = torch.randn(2, 5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    value_TJ = torch.tensor([[0.7, 0.6, 1.0], [1.5, 1.0, 2.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 0.3, 1.5]]).double()
    seen, token_T = lk.Context(logits_NV=logits_TV, second_NV=second_TV), torch.tensor([0, 3, 8, 2, 1])
    (sensibleness_T, diversity_T, attribution_T), log_prob_T = token_account(seen, SPACE, value_TJ, token_T, has_evidence)
    drawn_TV = lk.likelihood.reference.apply_values(logits_TV, SPACE, value_TJ, seen)  # type: ignore[attr-defined]
    for t in range(5):
        pi, p, q = softmax(drawn_TV[t].tolist()), softmax(logits_TV[t].tolist()), softmax(second_TV[t].tolist())
        kl = sum(a * math.log(a / b) for a, b in zip(pi, p, strict=True) if a > 0)
        assert sensibleness_T[t].item() == pytest.approx(-kl, abs=1e-9)
        assert diversity_T[t].item() == pytest.approx(-sum(a * math.log(a) for a in pi if a > 0), abs=1e-9)
        assert log_prob_T[t].item() == pytest.approx(math.log(p[int(token_T[t])]))
        if has_evidence:
            expected = sum(a * math.log(b / c) for a, b, c in zip(pi, p, q, strict=True) if a > 0)
            assert attribution_T is not None and attribution_T[t].item() == pytest.approx(expected, abs=1e-9)
    assert (attribution_T is None) != has_evidence


def test_responses_sum_their_tokens_in_the_order_of_the_rollouts() -> None:
    model, tokenizer = testbed.load_model().double(), testbed.load_tokenizer()
    prompts, policy = make_prompts(ROWS, tokenizer), UniformPolicy(SPACE, Every(1))
    rollouts = roll_out(model, tokenizer, prompts, policy, copies=2, max_new_tokens=7, batch_size=5, seed=0)
    engine, read = TransformersEngine(model, tokenizer), list[int]()
    found = account_of(engine, prompts, rollouts, SPACE, batch_size=5, advance=read.append)
    assert read == [5, 5, 2] and found.prompts == [rollout.prompt for rollout in rollouts]
    for r, rollout in enumerate(rollouts):
        prompt = prompts[rollout.prompt]
        (seen,) = engine.observe([prompt.ids], [rollout.ids], ("second_NV",), second_prompts=[prompt.second_ids])
        one, log_prob_T = token_account(
            seen, SPACE, torch.tensor(rollout.values, dtype=torch.float64), torch.tensor(rollout.ids), True
        )
        assert found.tokens[r] == len(rollout.ids)
        assert found.attribution is not None and found.attribution[r] == pytest.approx(one.attribution_N.sum().item(), abs=1e-9)
        assert found.sensibleness[r] == pytest.approx(one.sensibleness_N.sum().item(), abs=1e-9)
        assert found.log_prob[r] == pytest.approx(log_prob_T.sum().item(), abs=1e-9)
    bare = make_prompts([row["prompt"] for row in ROWS], tokenizer)
    assert account_of(engine, bare, rollouts, SPACE).attribution is None


def test_greedy_text_has_no_diversity_and_the_lm_itself_is_sensible() -> None:
    model, tokenizer = testbed.load_model(), testbed.load_tokenizer()
    prompts, engine = make_prompts(ROWS, tokenizer), TransformersEngine(model, tokenizer)
    plain = UniformPolicy(lk.KnobSpace.of("temperature:1"), Every(1))
    greedy, sampled = (
        account_of(engine, prompts, roll_out(model, tokenizer, prompts, one, max_new_tokens=7, batch_size=6, seed=0), one.space)
        for one in (GreedyPolicy(), plain)
    )
    assert max(map(abs, greedy.diversity)) < 1e-6 and greedy.of("log_prob").mean == pytest.approx(greedy.of("sensibleness").mean)
    assert max(map(abs, sampled.sensibleness)) < 1e-4 and sampled.of("diversity").low > 0


def test_means_are_per_token_or_per_response_by_prompt() -> None:
    one = Account(
        prompts=[0, 0, 2], tokens=[1, 3, 2], sensibleness=[-1.0, -3.0, -4.0], diversity=[0, 0, 0], attribution=None,
        log_prob=[-1, -1, -1],
    )  # fmt: skip
    assert one.of("sensibleness").mean == pytest.approx(np.mean([-4 / 4, -4 / 2]))
    assert one.of("sensibleness", "response").mean == pytest.approx(np.mean([-4 / 2, -4]))
    assert one.of("attribution") is None
    assert str(one.of("diversity")) == "0.000 [0.000, 0.000]", "no prompt could differ"
    warm = one.model_copy(update={"sensibleness": [-3.0, -3.0, -6.0]})
    both = join_accounts([{"a": one}, {"a": warm, "b": one}])["a"]
    assert both.runs == 2 and both.of("sensibleness").mean == pytest.approx(np.mean([-4 / 4, -4 / 2, -6 / 4, -6 / 2]))


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    assert front([0, 1, 2, 1.5, 2], [3, 2, 1, 0.5, 0.9]) == [0, 1, 2]


# a finished run


def length(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [float(len(text)) for text in completions]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("account")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    settings = {"prompts": str(rows), "eval_prompts": str(held_out(folder)), "output_dir": folder / "run"}
    lk.train(knobs=["temperature:0,1"], reward=length, **settings, **SMALL)
    return folder / "run"


def held_out(folder: Path) -> Path:
    path = folder / "held_out.jsonl"
    rows = [{name: text.replace("ball", "hat").replace("Story: ", "Story: So ") for name, text in row.items()} for row in ROWS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_finished_run_is_accounted_for_on_the_command_line(run: Path) -> None:
    found = CliRunner().invoke(cli, ["account", str(run), "--batch-size", "7"])
    assert found.exit_code == 0, found.output
    assert "What each policy trades, in nats per token" in found.output and "attribution" in found.output
    report = read_report(run)
    accounts = read_accounts(run, report.rewards)
    assert set(accounts) == set(report.rewards) and accounts[GREEDY].diversity == [0.0] * 6
    assert len(accounts[HEAD].prompts) == 6 and accounts[HEAD].attribution is not None
    page = (run / "report.html").read_text()
    assert "What each policy trades" in page and "trade-off" in page
    assert "responses of" in found.stderr and "two forward passes for each" in found.stderr, "the cost is said first"


def test_a_run_accounts_for_itself_where_that_is_set_and_says_so_first(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = held_out(tmp_path)
    settings: dict[str, Any] = {"prompts": str(path), "eval_prompts": str(path.with_name("rows.jsonl")), "account": True}
    path.with_name("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    run = lk.train(knobs=["temperature:0,1"], reward=length, output_dir=tmp_path / "run", **settings, **SMALL)
    said = capfd.readouterr().err
    assert said.index("The account reads") < said.index("round-1/rollouts") < said.index("responses of")
    assert run.report is not None and set(read_accounts(run.path, run.report.rewards)) == set(run.report.rewards)
    assert "What each policy trades" in (run.path / "report.html").read_text()


def test_an_evaluation_accounts_for_its_policies_as_their_run_does(run: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"prompts": run.parent / "held_out.jsonl", "tune_prompts": run.parent / "rows.jsonl"}
    settings |= {"reward": length, "eval_size": 3, "tune_size": 2, "train_prompts": 4, "max_new_tokens": 6, "seeds": 2}
    settings |= {"against": "edt:base=1,theta=1", "account": True, "output_dir": tmp_path}
    found = lk.evaluate([run / "adapter"] * 2, **settings)  # as if of two seeds
    accounts = lk.account(run)
    assert set(found.accounts) == set(found.rewards) and PER_TASK in accounts
    for name in found.accounts.keys() & accounts.keys():
        one, both = accounts[name], found.accounts[name]
        assert both.runs == 2 and both.of("diversity").mean == pytest.approx(one.of("diversity").mean, abs=1e-5)
        for term in ("prompts", *TERMS):
            assert getattr(both, term) == pytest.approx(getattr(one, term) * 2, abs=1e-5), (name, term)
    assert read_accounts(tmp_path, found.rewards) == found.accounts
    page = (tmp_path / "report.html").read_text()
    assert "What each policy trades" in page and "edt:base=1,theta=1" in page and "length (a Python object)" in page


def test_what_answers_each_prompt_as_another_policy_has_parts_of_their_accounts() -> None:
    one, other = (
        Account(
            prompts=[0, 0, 1], tokens=[1, 2, 3], sensibleness=[n, n, n], diversity=[n] * 3, attribution=None, log_prob=[n] * 3
        )
        for n in (1.0, 2.0)
    )
    found = Account.select({"one": one, "other": other}, ["other", "one"])
    assert (found.prompts, found.tokens, found.diversity, found.attribution) == ([1, 0, 0], [3, 1, 2], [1.0, 2.0, 2.0], None)


@pytest.mark.parametrize("change", [{"runs": 0}, {"runs": 5}, {"tokens": [1]}, {"name": "not there"}])
def test_a_damaged_account_is_refused(run: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    lk.account(run)
    rewards = read_report(run).rewards
    saved = json.loads((run / FILE).read_text())
    if name := change.pop("name", None):
        saved["policies"][name] = saved["policies"][HEAD]
    saved["policies"][HEAD] |= change
    (tmp_path / FILE).parent.mkdir()
    (tmp_path / FILE).write_text(json.dumps(saved))
    with pytest.raises(RunError, match="Delete it, or write it again"):
        read_accounts(tmp_path, rewards)


def test_a_model_with_other_weights_is_refused(run: Path) -> None:
    model, tokenizer = testbed.load_model(), testbed.load_tokenizer()
    lk.account(run, model=model, tokenizer=tokenizer)
    next(model.parameters()).data[0, 0] += 1
    before = (run / FILE).read_text()
    with pytest.raises(RunError, match=r"The weights of the model .* are not those that wrote the responses"):
        lk.account(run, model=model, tokenizer=tokenizer)
    assert (run / FILE).read_text() == before


def test_an_account_of_another_evaluation_is_not_shown(run: Path) -> None:
    lk.account(run)
    rewards = read_report(run).rewards
    assert read_accounts(run, rewards) and not read_accounts(run, {name: value + 1 for name, value in rewards.items()})
    path, text = run / FILE, (run / FILE).read_text()
    path.write_text("{")
    with pytest.raises(RunError, match="Delete it, or write it again with `latentknobs account`"):
        read_accounts(run, rewards)
    path.write_text(text)


def test_what_cannot_be_accounted_for_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="There is no evaluation"):
        lk.account(tmp_path)
    (config, kept) = (run / "config.yaml", (run / "config.yaml").read_text())
    config.write_text(kept.replace("eval_size: 3", "eval_size: 2"))
    with pytest.raises(RunError, match="is of 3 prompts, and its settings now give 2"):
        lk.account(run)
    config.write_text(re.sub(r"(?m)^(\s*prompts): .*rows.jsonl.*$", rf"\1: 'list {OBJECT}'", kept))
    with pytest.raises(
        ConfigError, match=r"the setting prompts was a Python object\. Pass it again: latentknobs.account\(run, pro"
    ):
        lk.account(run)
    config.write_text(kept)
    lost = next((run / "evaluation" / "rollouts").glob("uniform_mixture*"))
    moved = lost.rename(lost.with_suffix(".moved"))
    with pytest.raises(RunError, match=r"The responses of .uniform mixture. .* are not complete"):
        lk.account(run)
    moved.rename(lost)
