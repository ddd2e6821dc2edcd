"""`latentknobs serve` checks everything before vLLM, which takes a minute to start, is started."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from latentknobs import testbed
from latentknobs.adapter import KnobAdapter, describe_model
from latentknobs.cli import cli
from latentknobs.commands.serve import parse_adapters, plugins
from latentknobs.engines.vllm.limits import check_config, check_flags
from latentknobs.errors import AdapterError, ConfigError
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import Every
from latentknobs.knobs.space import KnobSpace
from latentknobs.serving import base_of, read_picks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    space, model = KnobSpace.of({"temperature": [0.0, 1.0]}), testbed.load_model()
    head = OptionHead(space, model.config.hidden_size)
    adapter = KnobAdapter(space, head, Every(1), ("hidden",), describe_model(model))
    return adapter.save_pretrained(tmp_path_factory.mktemp("adapters") / "mine")


def serve(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["serve", *arguments])


@pytest.fixture
def supported_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """This environment has no vLLM; it seems to have a version that was tested."""
    monkeypatch.setattr("latentknobs.engines.vllm.versions.installed", lambda: "0.32.0")


def test_the_command_that_starts_vllm(folder: Path, supported_vllm: None) -> None:
    found = serve("testbed", "--adapter", f"a={folder}", "--adapter", "b=edt:base=1.4,theta=3", "--print", "--", "--port", "8001")
    assert found.exit_code == 0, found.output
    assert "vllm.entrypoints.cli.main serve" in found.output and found.output.rstrip().endswith("--port 8001")
    assert str(folder) in found.output and "edt:base=1.4,theta=3" in found.output and "--generation-config vllm" in found.output
    assert "latentknobs_http" in found.output.split()[0], "routes of plug-ins are off unless they are listed"
    other = serve("testbed", "--adapter", f"a={folder}", "--print", "--", "--generation-config=auto")
    assert "--generation-config vllm" not in other.output


def test_other_plug_ins_stay_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "theirs")
    assert plugins() == ["latentknobs", "latentknobs_http", "theirs"]


@pytest.mark.parametrize(("arguments", "words"), [
    (["testbed", "--adapter", "mine"], "not of the form NAME=FOLDER"),
    (["testbed", "--adapter", "a=edt:base=1,theta=1", "--adapter", "a=greedy"], "Two adapters are called 'a'"),
    (["testbed", "--adapter", "a=./nowhere"], "There is no adapter in"),
    (["testbed", "--adapter", "a=edd:base=1"], 'Did you mean "edt"'),
    (["./nowhere", "--adapter", "a=greedy"], "The model './nowhere' cannot be read"),
    (["testbed", "--adapter", "a=kl_guided:base=1,half_life=1"], "'a' cannot run in vLLM: it reads second logits"),
    (["testbed", "--adapter", "a=cfg:scale=1.5"], "'a' cannot run in vLLM: its knob 'guidance_scale' reads second logits"),
    (["testbed", "--adapter", "a=greedy", "--", "--speculative_config", "{}"], "policies cannot follow drafts yet"),
    (["testbed", "--adapter", "a=greedy", "--", "--logprobs-mode", "processed_logprobs"], "log-probability 0"),
    (["testbed", "--adapter", "a=greedy", "--", "--additional-config={}"], "the adapters are listed there"),
    (["testbed", "--adapter", "a=greedy", "--", "--grpc"], "requests are checked in vLLM's HTTP server"),
])  # fmt: skip
def test_mistakes_are_found_before_vllm_starts(arguments: list[str], words: str, supported_vllm: None) -> None:
    found = serve(*arguments)
    assert found.exit_code == 2 and words in " ".join(found.output.split())


def test_without_vllm_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentknobs.engines.vllm.versions.installed", lambda: None)
    found = serve("testbed", "--adapter", "a=greedy")
    assert found.exit_code == 2 and "vLLM is not installed here" in " ".join(found.output.split())


def test_an_adapter_of_another_model_is_refused(folder: Path) -> None:
    text = testbed.load_model().config
    assert set(read_picks(str(folder), base_of(text, "x"))) == {"greedy", "sample"}
    with pytest.raises(AdapterError, match="hidden size"):
        read_picks(str(folder), base_of(text, "x") | {"hidden_size": 4096})


def test_folders_reach_other_processes_in_full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert parse_adapters(["a=./mine", "b=mine", "c=greedy", "d=who/what"]) == {
        "a": str(folder), "b": str(folder), "c": "greedy", "d": "who/what"}  # fmt: skip


def test_flags_that_are_no_trouble_pass() -> None:
    check_flags(["--logprobs-mode", "raw_logits", "--max-num-seqs=64", "-tp", "2"])


GOOD: dict[str, Any] = {
    "speculative_config": None, "additional_config": {"latentknobs": {}}, "watermark_config": None,
    "model_config": SimpleNamespace(logprobs_mode="raw_logprobs", enable_prompt_embeds=False),
    "parallel_config": SimpleNamespace(enable_batch_sharded_sampling=False),
}  # fmt: skip


@pytest.mark.parametrize(("more", "words"), [
    ({"speculative_config": object()}, "--speculative-config"),
    ({"parallel_config": SimpleNamespace(enable_batch_sharded_sampling=True)}, "--enable-batch-sharded-sampling"),
    ({"model_config": SimpleNamespace(logprobs_mode="processed_logits", enable_prompt_embeds=False)}, "--logprobs-mode proc"),
    ({"model_config": SimpleNamespace(logprobs_mode="raw_logprobs", enable_prompt_embeds=True)}, "--enable-prompt-embeds"),
    ({"watermark_config": object()}, "--watermark-config"),
    ({"additional_config": {}}, "no 'latentknobs'"),
])  # fmt: skip
def test_a_vllm_that_was_started_by_hand_is_checked_too(more: dict[str, Any], words: str) -> None:
    check_config(SimpleNamespace(**GOOD))
    with pytest.raises(ConfigError, match=words):
        check_config(SimpleNamespace(**GOOD | more))


def test_requests_that_another_front_end_takes_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with pytest.raises(ConfigError, match="started with VLLM_USE_RUST_FRONTEND"):
        check_config(SimpleNamespace(**GOOD))
