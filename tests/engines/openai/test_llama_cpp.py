"""llama.cpp's own server (package xllamacpp, where it is installed): what the profile says that it takes, and in which order."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gguf_files import write_gguf

from latentknobs import testbed
from latentknobs.engines.base import engine_of
from latentknobs.engines.served import measure_drift
from latentknobs.heads.segmenters import WholeResponse
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies import ConstantPolicy, UniformPolicy
from latentknobs.testbed.model_files import MODEL_DIR
from latentknobs.testing import EngineConformance

xllamacpp: Any = pytest.importorskip("xllamacpp")
MODEL, TOKENIZER = testbed.load_model(), testbed.load_tokenizer()
PROMPTS = [TOKENIZER(row["prompt"]).input_ids for row in testbed.prompts("mixture", "eval", 24)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The packaged LM, served from this process."""
    file, parts = tmp_path_factory.mktemp("llama") / "testbed.gguf", json.loads(Path(MODEL_DIR, "tokenizer.json").read_text())
    tokens = sorted(TOKENIZER.get_vocab(), key=TOKENIZER.get_vocab().__getitem__)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in parts["model"]["merges"]]
    write_gguf(file, MODEL, tokens, merges, special=len(TOKENIZER.all_special_ids))
    settings = xllamacpp.CommonParams()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        settings.port = free.getsockname()[1]
    settings.model.path, settings.n_ctx, settings.n_parallel, settings.cpuparams.n_threads = str(file), 2048, 8, 1
    settings.warmup, settings.fit_params, settings.n_gpu_layers, settings.verbosity = False, False, 0, -1
    running = xllamacpp.Server(settings)
    yield running.listening_address
    del running


class TestLlamaCpp(EngineConformance):
    @pytest.fixture(autouse=True)
    def over_http(self, server: str) -> None:
        type(self).engine = engine_of(f"llama.cpp:{server},concurrency=1", MODEL, TOKENIZER)


@pytest.mark.parametrize(("knobs", "order"), [
    (["temperature:0,0.6,1.3", "min_p:0,0.05", "top_k:0,8", "top_p:0.7,1"], "llama.cpp"),
    (["temperature:0,0.6,1.3", "min_p:0,0.05", "top_k:0,8", "top_p:0.7,1"], "transformers"),
    (["temperature:0.5,1.5", "typical_p:0.3,1"], "transformers"), (["temperature:0.5,1.5", "top_n_sigma:1,2"], "transformers"),
    (["temperature:0.5,1.5", "xtc_threshold:0.1,1"], "transformers"),
])  # fmt: skip
def test_every_field_acts_as_the_knob_does(server: str, knobs: list[str], order: Any) -> None:
    space, engine = KnobSpace.of(*knobs, order=order), engine_of(f"llama.cpp:{server}", MODEL, TOKENIZER)
    found = engine.sample(PROMPTS, UniformPolicy(space, WholeResponse()), max_new_tokens=24, seed=1)
    drift = measure_drift(engine, space, PROMPTS, found)
    assert engine.logps == "model" and drift.outside == 0 and drift.compared > 400 and drift.mean < 0.005  # its cache is float16


def test_the_order_of_a_request_is_heeded(server: str) -> None:
    knobs, engine = ("temperature:1.8", "min_p:0.1", "top_p:0.6"), engine_of(f"llama.cpp:{server}", MODEL, TOKENIZER)
    for mine, other in (("transformers", "llama.cpp"), ("llama.cpp", "transformers")):
        sent, not_sent = (KnobSpace.of(*knobs, order=order) for order in (mine, other))  # type: ignore[arg-type]
        found = engine.sample(PROMPTS, ConstantPolicy(sent, 0), max_new_tokens=24, seed=1)
        outside = [measure_drift(engine, space, PROMPTS, found).outside for space in (sent, not_sent)]
        assert outside[0] == 0 and outside[1] > 50
