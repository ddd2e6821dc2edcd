"""Where the model goes: one device of its own, a device map, or tensor parallel over processes; and what contradicts itself."""

import socket
from contextlib import contextmanager

import pytest
import torch
from forked import started
from tensor_parallel import main
from transformers import LlamaConfig, LlamaForCausalLM

from latentknobs import testbed
from latentknobs.config import make_config
from latentknobs.engines.transformers.frozen import input_device, read_responses
from latentknobs.errors import ConfigError
from latentknobs.models.loading import load_model, pick_device
from latentknobs.models.world import in_ordinary_mode


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a random Llama whose heads two processes can share, and a tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = LlamaConfig(**shape, **ids, vocab_size=64, num_key_value_heads=2, max_position_embeddings=64)
    LlamaForCausalLM(config).save_pretrained(folder)
    testbed.load_tokenizer().save_pretrained(folder)
    return str(folder)


def load(saved, **settings):
    return load_model(saved, make_config(settings))[0]


def reading(model):
    """Hidden states and logits of one response."""
    return next(read_responses(model, [[1, 5, 6]], [[7, 8, 9]]))


class TestDeviceMap:
    @pytest.mark.parametrize("device_map", ["cpu", "auto"])
    def test_a_device_map_gives_the_same_frozen_model(self, saved, device_map):
        mapped, plain = load(saved, device_map=device_map), load(saved)
        assert not mapped.training and not any(p.requires_grad for p in mapped.parameters())
        assert input_device(mapped) == torch.device("cpu")
        for one, other in zip(reading(mapped), reading(plain), strict=True):
            assert torch.equal(one, other)

    def test_a_model_whose_weights_are_offloaded_is_read_where_they_are_used(self, saved):
        from accelerate import cpu_offload

        plain, offloaded = load(saved), load(saved)
        cpu_offload(offloaded, execution_device=torch.device("cpu"))
        assert next(offloaded.parameters()).device.type == "meta"  # what asking the weights would say
        assert input_device(offloaded) == torch.device("cpu")
        for one, other in zip(reading(offloaded), reading(plain), strict=True):
            assert torch.equal(one, other)

    def test_what_transformers_does_not_know_is_told(self, saved):
        with pytest.raises(ConfigError, match=r"cannot be loaded: .*but found nearby"):
            load(saved, device_map="nearby")


class TestTensorParallel:
    def test_two_processes_hold_one_model_that_reads_and_samples_as_in_one_process(self, saved, tmp_path):
        """The real thing, with gloo: each weight is split, and hidden states, logits and rollouts are those of one process."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks = [shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
        logs = [tmp_path / f"said-{n}" for n in range(3)]
        running = [started(main, saved, str(tmp_path), env=rank, log=log) for rank, log in zip((*ranks, {}), logs, strict=True)]
        try:
            for process, log in zip(running, logs, strict=True):
                process.join(timeout=120)
                assert process.exitcode == 0, log.read_text()[-3000:]
        finally:
            for process in running:
                process.kill()  # one that still waits for another
        one, *two = (torch.load(tmp_path / name, weights_only=True) for name in ("alone.pt", "rank-0.pt", "rank-1.pt"))
        for each in two:
            assert each["rows of a weight"] * 2 == one["rows of a weight"]
            assert each["responses"] == one["responses"]
            for name in ("hidden", "logits"):
                assert torch.allclose(each[name], one[name], atol=1e-6)

    @pytest.mark.parametrize(
        ("plan", "told"),
        [
            (
                "auto",
                r"tp_plan='auto' splits the model over processes, and there is one\. Start with torchrun",
            ),
            ("colwise", r"There is no tp_plan='colwise'\. The plan that comes with the model is tp_plan='auto'"),
        ],
    )
    def test_it_needs_several_processes_and_the_plan_of_the_model(self, saved, plan, told):
        with pytest.raises(ConfigError, match=told):
            load(saved, tp_plan=plan)


class TestContradictions:
    @pytest.mark.parametrize(
        ("settings", "told"),
        [
            ({"device_map": "auto", "tp_plan": "auto"}, "device_map='auto' and tp_plan='auto' each say where the model goes"),
            ({"device_map": "auto", "device": "cpu"}, "device_map='auto' and device='cpu' each say where the model goes"),
            ({"tp_plan": "auto", "device": "cuda"}, "Choose one of device, device_map and tp_plan"),
        ],
    )
    def test_only_one_setting_says_where_the_model_goes(self, saved, settings, told):
        with pytest.raises(ConfigError, match=told):
            load(saved, **settings)

    def test_the_testbed_needs_none_of_it(self):
        with pytest.raises(ConfigError, match="The packaged testbed model fits every device and has no device_map='auto'"):
            load("testbed", device_map="auto")

    def test_processes_cannot_each_spread_over_all_devices(self, saved, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "4")
        with pytest.raises(ConfigError, match=r"each of the 4 processes would want them\. Start one process"):
            load(saved, device_map="auto")

    def test_a_model_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(ConfigError, match=r"nothing' cannot be loaded: .* or `testbed` for the packaged one"):
            load(str(tmp_path / "nothing"))


class TestDevice:
    def test_the_model_goes_there(self, saved):
        assert {p.device.type for p in load(saved, device="meta").parameters()} == {"meta"}
        assert {p.device.type for p in load(saved).parameters()} == {pick_device("auto").partition(":")[0]}

    def test_alone_it_is_what_was_asked_for(self):
        assert pick_device("cpu") == "cpu"
        with pytest.raises(ConfigError, match=r"The device 'tpu9' cannot be used: .* Use auto, cpu or cuda\.$"):
            pick_device("tpu9")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="speaks of a machine without CUDA")
    @pytest.mark.parametrize("name", ["auto", "cuda"])
    def test_each_of_several_processes_has_its_own_gpu(self, monkeypatch, name):
        assert pick_device("auto") == "cpu"
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # so the device is chosen, and then cannot be used
        for key, value in {"WORLD_SIZE": "4", "RANK": "7", "LOCAL_RANK": "3"}.items():
            monkeypatch.setenv(key, value)
        with pytest.raises(ConfigError, match=r"The device 'cuda:3' cannot be used: .*no more processes than there are devices"):
            pick_device(name)


@contextmanager
def default_dtype(dtype: torch.dtype):
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("caller", [
    lambda: default_dtype(torch.bfloat16), lambda: torch.device("meta"), lambda: torch.autocast("cpu", torch.bfloat16),
    torch.no_grad,
])  # fmt: skip
def test_ordinary_mode_whatever_the_callers_and_back(caller) -> None:
    def modes():
        return torch.get_default_dtype(), torch.get_default_device(), torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()

    before = modes()
    with caller():
        callers = modes()
        with in_ordinary_mode():
            one = torch.ones(2, 2)
            assert (one.dtype, one.device.type, (one @ one).dtype) == (torch.float32, "cpu", torch.float32)
            assert torch.ones(1, requires_grad=True).mul(2).requires_grad
        assert modes() == callers != before
