"""vLLM's own server without any plug-in, at sequence level: the engine `openai` passes the suite of all engines."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from vllm_cases import MODEL, TOKENIZER, V2, prompts

from latentknobs.engines.base import engine_of
from latentknobs.engines.served import measure_drift
from latentknobs.heads.segmenters import WholeResponse
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies import UniformPolicy
from latentknobs.testbed.model_files import MODEL_DIR
from latentknobs.testing import EngineConformance

pytestmark = pytest.mark.skipif(V2, reason="the same requests")
FLAGS = "--dtype float32 --max-model-len 256 --enforce-eager --gpu-memory-utilization 0.1 --generation-config vllm"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The packaged LM, served by vLLM alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(MODEL_DIR), "--served-model-name",
               "testbed", "--host", "127.0.0.1", "--port", str(port), *FLAGS.split()]  # fmt: skip
    log = tmp_path_factory.mktemp("vllm") / "log"
    environment = os.environ | {"VLLM_PLUGINS": "", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file, env=environment) as process:
        try:
            wait(f"http://127.0.0.1:{port}", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(400):
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
        except OSError:
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(1)
        else:
            return
    raise AssertionError(log.read_text()[-3000:])


class TestVLLMOverHTTP(EngineConformance):
    @pytest.fixture(autouse=True)
    def over_http(self, server: str) -> None:
        type(self).engine = engine_of(f"vllm:{server}", MODEL, TOKENIZER)


def test_log_probabilities_and_kept_sets_are_those_of_a_reading(server: str) -> None:
    space = KnobSpace.of("temperature:0,0.6,1.3", "min_p:0,0.05", "top_k:0,8", "top_p:0.7,1", order="vllm")
    engine, texts = engine_of(f"vllm:{server}", MODEL, TOKENIZER), prompts(60)
    found = engine.sample(texts, UniformPolicy(space, WholeResponse()), max_new_tokens=40, seed=1)
    drift = measure_drift(engine, space, texts, found)
    print(f"\n{drift}")
    assert engine.logps == "model"  # vLLM's default; --logprobs-mode processed_logprobs gives those of what was drawn
    assert drift.outside == 0 and drift.compared > 500 and drift.largest < 1e-3
