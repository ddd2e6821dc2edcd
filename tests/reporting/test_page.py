"""The HTML report: complete, escaped, self-contained, the same every time."""

import dataclasses
import json
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import latentknobs
from latentknobs.config import make_config, write_yaml
from latentknobs.data.rollouts import Rollout, write_lines
from latentknobs.errors import RunError
from latentknobs.evaluation.report import HEAD, Report
from latentknobs.reporting import figures, write_findings, write_report

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Balance(HTMLParser):
    """Checks that every element that opens also closes, in order, and notes what there is."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.titles: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = dict(attrs)
        self.titles += [named["title"] or ""] if "title" in named else []
        self.ids += [named["id"] or ""] if "id" in named else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def html(finished: Path, report: Report) -> str:
    return write_report(finished, report).read_text(encoding="utf-8")


def test_it_opens_with_the_verdict(html: str, report: Report) -> None:
    assert report.verdict() in re.sub(r"\s+", " ", re.sub(r"</?(h1|p)>", "", html)) and 'class="mark good"' in html
    assert f"</span>{report.sentences()[0]}</h1>" in html and report.sentences()[0].startswith("The head beats")


def test_it_is_balanced_html_with_unique_ids(html: str) -> None:
    found = Balance(html)
    assert not found.open and len(found.ids) == len(set(found.ids))


def test_table_has_every_policy_once_for_all_and_once_for_each_task(html: str, report: Report) -> None:
    for policy in report.rewards:
        assert html.count(f"<td>{policy}") == 4
    assert "greedy decoding" in html and f"{report.tuned} (tuned)" in html


def test_it_has_its_five_plots(html: str) -> None:
    assert html.count("<svg") == 5  # wins, constants, chosen values of two knobs, training
    assert all(f'id="{name}-' in html for name in ("wins", "constants", "chosen-temperature", "chosen-top_p", "training"))


def test_tokens_carry_their_option_and_colour(html: str) -> None:
    titles = Balance(html).titles
    assert "temperature 0, top_p 0.5 · option 0 · token 1" in titles
    assert len(titles) == 3 * 6 * 7
    assert "background:rgb(38 103 214 / 0.52)" in html and "background: rgb(236 94 10 / 0.52)" in html


def test_texts_are_escaped_everywhere(html: str) -> None:
    own = html.count((Path(latentknobs.__file__).parent / "templates/report.js").read_text().strip())
    assert html.count("<script") == own == 1 and "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "<i>" not in html and "<b>" not in html and "a&lt;b" in html
    assert "$x^2$" in html and "$y_1$" in html


def test_nothing_is_loaded_from_elsewhere(html: str) -> None:
    found = Balance(html)
    assert not {"link", "img", "iframe"} & set(found.tags) and found.tags.count("script") == 1
    assert not re.search(r"<script[^>]+>|import\(|fetch\(|XMLHttp", html)
    assert not re.search(r"""(src|href)="(?!#)|url\((?!#)|@import""", html.replace("xlink:href", "href"))


def test_plots_take_their_colours_from_the_page(html: str) -> None:
    drawn = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    assert "var(--head)" in drawn and "var(--ink)" in drawn
    assert not re.findall(r"#[0-9a-f]{6}", drawn)


def test_the_same_run_gives_the_same_file(run: Path, report: Report, html: str) -> None:
    assert write_report(run, report).read_text(encoding="utf-8") == html


def test_a_single_task_and_a_single_seed_are_enough(run: Path, report: Report) -> None:
    rewards = {name: values[:1] for name, values in report.rewards.items()}
    html = write_report(run, Report(rewards, ["all"] * 30, report.tuned, report.tuning)).read_text(encoding="utf-8")
    assert "<details>" in html and "each answered 1 time by" in html


def test_a_learner_on_policy_shows_reward_against_rollouts(run: Path, report: Report) -> None:
    rows = [{"round": 1, "head": head, "step": s, "loss": 0.0, "reward": s / 4, "rollouts": 8 * s, "dropped": s, "prompts": 8}
            for s in (1, 2, 3) for head in ("main", "rival")]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    html = write_report(run, report).read_text(encoding="utf-8")
    assert "against the number of responses" in html and "responses so far" in html and "Preference" not in html
    assert "Steps left out 6 of the 24 prompts" in html


def test_several_budgets_are_curves_of_the_head_and_of_its_rivals(run: Path, report: Report) -> None:
    one = [[0.1, 0.2, 0.4], [0.3, None, 0.5]]
    data = {"budgets": [[8, 1], [16, 1]], "rewards": dict.fromkeys([HEAD, "uniform mixture", *report.tuning], one)}
    (run / "evaluation" / "budgets.json").write_text(json.dumps(data))
    html = write_report(run, report).read_text(encoding="utf-8")
    assert "longest response, tokens" in html and "best constant in hindsight" in html and "responses together" not in html
    for damaged in ({"budgets": [[8, 1]], "rewards": data["rewards"]}, {"budgets": [[8, 1]], "rewards": {}}, {"budgets": [[8]]}):
        (run / "evaluation" / "budgets.json").write_text(json.dumps(damaged))
        with pytest.raises(RunError, match=r"budgets\.json' is damaged: .* Delete it to do without these curves\."):
            write_report(run, report)


def test_without_metrics_there_are_no_curves(run: Path, report: Report) -> None:
    (run / "metrics.jsonl").unlink()
    assert "<h2>Training" not in write_report(run, report).read_text(encoding="utf-8")


@pytest.mark.parametrize("line", ['{"round": 1}', "[]", "{", "[" * 100_000, '{"round": 0, "head": "main", "step": 1, "loss": 1}',
                                  '{"round": 1, "head": "main", "step": 1, "loss": [1]}'])  # fmt: skip
def test_damaged_metrics_are_named(run: Path, report: Report, line: str) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(RunError, match=r"metrics\.jsonl' is damaged: .* Delete it to do without the curves\.") as caught:
        write_report(run, report)
    assert len(str(caught.value)) < 400


def test_responses_of_another_evaluation_are_refused(run: Path, report: Report) -> None:
    fewer = Report(
        {name: values[:, :20] for name, values in report.rewards.items()}, report.tasks[:20], report.tuned, report.tuning
    )
    with pytest.raises(RunError, match="are not those of its evaluation"):
        write_report(run, fewer)
    rollout = Rollout(0, (2,), (6,), "text")  # the space has options 0 to 5
    write_lines(run / "evaluation" / "rollouts" / "learned_head-00001.jsonl", [rollout])
    with pytest.raises(RunError, match="are not those of its evaluation"):
        write_report(run, report)


@pytest.mark.parametrize("text", ["[1]", "steps: many", "nothing: 1", "{", "rounds: [1]", "learner: {name: nobody}"])
def test_settings_that_do_not_fit_are_named(run: Path, report: Report, text: str) -> None:
    (run / "config.yaml").write_text(text)
    with pytest.raises(RunError, match=r"(?s)The settings in '.*' cannot be shown: .* Train again with the same settings\."):
        write_report(run, report)


def test_folders_of_this_machine_are_not_shown(run: Path, report: Report) -> None:
    write_yaml(make_config({"model": "/home/mia/models/tiny-lm", "prompts": "dataset:/home/mia/rows:train"}), run / "config.yaml")
    html = write_report(run, report).read_text(encoding="utf-8")
    assert "mia" not in html and "tiny-lm" in html and "dataset:rows:train" in html


def test_findings_stand_before_the_table_escaped_and_as_a_list(run: Path, report: Report) -> None:
    write_findings(run, ["Rewards tie: for <i>most</i> prompts.", "The head is nearly uniform."])
    html = write_report(run, report).read_text(encoding="utf-8")
    assert (
        html.index("<h2>What to look at") < html.index("<li>Rewards tie: for &lt;i&gt;most") < html.index("<h2>The head against")
    )
    assert html.count("<li>") == 2 and not Balance(html).open


def test_nothing_found_is_one_calm_sentence_and_nothing_known_is_silence(run: Path, report: Report, html: str) -> None:
    write_findings(run, [])
    calm = write_report(run, report).read_text(encoding="utf-8")
    assert "<h2>What to look at" in calm and "Nothing stands out" in calm and "<li>" not in calm
    assert "What to look at" not in html and "Nothing stands out" not in html


def test_prompts_without_a_reward_are_counted_out_and_shown_without_a_number(run: Path, report: Report) -> None:
    rewards = {name: values.copy() for name, values in report.rewards.items()}
    rewards[HEAD][0, 0] = np.nan
    html = write_report(run, Report(rewards, report.tasks, report.tuned, report.tuning)).read_text(encoding="utf-8")
    assert "Measured on 29 held-out prompts" in html and "1 of 30 prompts are left out" in re.sub(r"\s+", " ", html)
    assert html.count("no reward") == 1 and "nan" not in re.sub(r"<svg.*?</svg>", "", html, flags=re.DOTALL)
    assert "math, 9 prompts" in html and "stories, 10 prompts" in html


def test_an_early_stop_is_told_below_the_curves(run: Path, report: Report) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"round": 2, "head": "main", "step": 9, "loss": 0.6, "stopped": "no better accuracy"}\n')
        file.write('{"round": 2, "head": "entropy", "step": 5, "loss": 0.6, "stopped": "another head"}\n')
    html = write_report(run, report).read_text(encoding="utf-8")
    assert "Round 2 stopped after step 9: no better accuracy." in html and "another head" not in html


def test_several_rewards_and_given_pairs_are_named(run: Path, report: Report) -> None:
    config = (run / "config.yaml").read_text(encoding="utf-8")
    changed = config.replace("reward: testbed", "reward: [testbed, repetition]").replace(
        "preferences: null", "preferences: a.jsonl"
    )
    (run / "config.yaml").write_text(changed, encoding="utf-8")
    html = write_report(run, report).read_text(encoding="utf-8")
    assert "<dd>testbed + repetition</dd>" in html and "<dd>pairs of a.jsonl</dd>" in html


def test_a_task_on_which_nothing_differs_does_not_push_the_other_panels_aside(report: Report) -> None:
    alike = np.array([task == report.tasks[0] for task in report.tasks])
    rewards = {name: np.where(alike, 0.5, value_SP) for name, value_SP in report.rewards.items()}
    tied = dataclasses.replace(report, rewards=rewards)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns where a layout collapses
        assert "<svg" in figures.win_rates(tied, {(row.policy, row.task): row for row in tied.table()})


def test_a_constant_that_was_not_judged_does_not_stop_the_report(run: Path, report: Report) -> None:
    constant = next(name for name in report.tuning if name != report.tuned)
    rewards = {name: values for name, values in report.rewards.items() if name != constant}
    html = write_report(run, dataclasses.replace(report, rewards=rewards)).read_text(encoding="utf-8")
    assert f"<td>{constant}</td>" not in html
