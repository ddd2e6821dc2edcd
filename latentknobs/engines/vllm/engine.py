"""The engine `vllm`: rollouts of any policy by vLLM in this process. Readings stay with transformers."""

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, ClassVar

import numpy as np
import torch

from latentknobs.engines.base import Ids, Response
from latentknobs.engines.served import ServedEngine
from latentknobs.engines.transformers.record import stop_ids
from latentknobs.engines.vllm import policies
from latentknobs.engines.vllm.limits import SETTINGS
from latentknobs.engines.vllm.versions import check_version
from latentknobs.engines.vllm.worker import first
from latentknobs.errors import ConfigError, DecodingError
from latentknobs.policies import Policy
from latentknobs.progress import processes

PROCESSOR = "latentknobs.engines.vllm.processor:PolicyProcessor"
WORKER = "latentknobs.engines.vllm.worker.PolicyWorker"
OURS: dict[str, Any] = {
    "logits_processors": [PROCESSOR], "worker_extension_cls": WORKER, "additional_config": {SETTINGS: {}},
    "generation_config": "vllm",
}  # fmt: skip
QUIET = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "WARNING"}
NAME = "rollouts"  # of the policy that is sampled from
_RUNNING: dict[tuple[Any, ...], Any] = {}  # the one LLM of this process


class VLLMEngine(ServedEngine):
    """vLLM in this process, beside the transformers model that it samples for, on the same device and in the same dtype.

    Args:
        model: the LM. vLLM reads it from the folder or hub id that it came from; a model from elsewhere is saved first.
        tokenizer: of the LM.
        max_num_seqs: most responses that are decoded together.
        gpu_memory_utilization: share of the device's memory (on a CPU of the machine's) that vLLM takes.
        more: further arguments of `vllm.LLM`, e.g. `enforce_eager=true` to start without compiling, or `max_num_batched_tokens`.

    Raises:
        ConfigError: vLLM is missing or was not tested, or an argument does not fit.
    """

    name: ClassVar[str] = "vllm"

    def __init__(
        self, model: Any, tokenizer: Any, *, max_num_seqs: int = 256, gpu_memory_utilization: float = 0.4, **more: Any
    ) -> None:
        check_version()
        super().__init__(model, tokenizer)
        self.model = model
        if processes() > 1:
            raise ConfigError("The engine 'vllm' works in one process. Start one, or a server, with engine='vllm:http://...'.")
        if wrong := sorted({*OURS, "tensor_parallel_size", "pipeline_parallel_size"} & more.keys()):
            raise ConfigError(f"The engine 'vllm' sets {wrong[0]} itself. Leave it out; for several devices, use a server.")
        self.settings = {"max_num_seqs": max_num_seqs, "gpu_memory_utilization": gpu_memory_utilization} | more

    def check(self, policy: Policy) -> None:
        """See `Engine.check`; second logits are refused."""
        policies.check(type(policy).__name__, policy)

    def sample(
        self, prompts: Sequence[Ids], policy: Policy, *, max_new_tokens: int, seed: int, samples: int = 1,
        second_prompts: Sequence[Ids] | None = None,
    ) -> list[Response]:  # fmt: skip
        """See `Engine.sample`. In float32 the responses are those of the engine `transformers`, near-ties aside."""
        keys = [f"{NAME} {row}" for row in range(len(prompts))]
        extra = {"latentknobs": NAME, "latentknobs_seed": seed, "latentknobs_samples": samples}
        with _undisturbed():
            llm = self._llm()
            llm.collective_rpc("latentknobs_register", args=(NAME, {"": policy}))
            rows = [{"extra_args": extra | {"latentknobs_row": b, "latentknobs_key": key}} for b, key in enumerate(keys)]
            found = self._generate(llm, prompts, rows, max_new_tokens)
            traces = first(llm.collective_rpc("latentknobs_take", args=(keys,)))
        return [response_of(ids, trace, self._text(ids)) for ids, trace in zip(found, traces, strict=True)]

    def plain(self, prompts: Sequence[Ids], values: Mapping[str, float], *, max_new_tokens: int, seed: int) -> list[Response]:
        """See `Engine.plain`; the noise is vLLM's own."""
        with _undisturbed():
            seeded = self.device.type != "cpu"  # there a request with a seed whose prompt is read in chunks ends vLLM
            fields = {name: int(value) if name == "top_k" else value for name, value in values.items()}
            rows = [{**fields, "seed": seed + b if seeded else None} for b in range(len(prompts))]
            found = self._generate(self._llm(), prompts, rows, max_new_tokens)
        return [Response(tuple(ids), (), None, self._text(ids)) for ids in found]

    def close(self) -> None:
        """Gives vLLM's memory back."""
        _stop()

    def _llm(self) -> Any:
        dtype = str(self.model.dtype).removeprefix("torch.")
        with _undisturbed():
            return _started(self._folder(), dtype, tuple(sorted(self.settings.items())))

    def _generate(self, llm: Any, prompts: Sequence[Ids], rows: Sequence[dict[str, Any]], max_new_tokens: int) -> list[list[int]]:
        """The ids of one response to each prompt, with sampling parameters of its own."""
        from vllm import SamplingParams

        common = {
            "max_tokens": max_new_tokens, "stop_token_ids": stop_ids(self.model.generation_config), "ignore_eos": True,
            "detokenize": False,
        }  # fmt: skip
        params = [SamplingParams(**common, **row) for row in rows]
        outputs = llm.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _folder(self) -> str:
        name = str(getattr(self.model.config, "_name_or_path", ""))
        if name and (Path(name).is_dir() or "/" in name):
            return name
        return _saved(self.model, self.tokenizer)


def response_of(ids: Sequence[int], trace: dict[str, Any] | None, text: str) -> Response:
    """A response of vLLM with what its policy chose; DecodingError if the policy drew other tokens."""
    if trace is None or list(trace["ids"]) != list(ids):
        drawn = "none" if trace is None else f"{len(trace['ids'])} tokens, {trace['ids'][:8]} ..."
        raise DecodingError(
            f"vLLM {check_version()} gave a response of {len(ids)} tokens, {list(ids)[:8]} ..., and the policy drew {drawn}. "
            "Some setting of vLLM acts after the policy; leave it out, or use engine='transformers'."
        )
    options = None if trace["options"] is None else tuple(trace["options"])
    return Response(tuple(ids), tuple(map(tuple, trace["values"])), options, text, tuple(trace["logps"]))


def _started(model: str, dtype: str, settings: tuple[tuple[str, Any], ...]) -> Any:
    """vLLM in this process, kept for the next rollouts."""
    from vllm import LLM

    key = model, dtype, settings
    if key not in _RUNNING:
        _stop()  # before the next starts: when an LLM goes, it takes the process groups of all with it
        _RUNNING[key] = LLM(model, dtype=dtype, seed=0, **OURS, **{"disable_log_stats": True, **dict(settings)})
    return _RUNNING[key]


def _stop() -> None:
    while _RUNNING:
        _RUNNING.popitem()[1].llm_engine.engine_core.shutdown()


@lru_cache(maxsize=4)
def _saved(model: Any, tokenizer: Any) -> str:
    """A folder with a model that came from none."""
    folder = mkdtemp(prefix="latentknobs-vllm-")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def _undisturbed() -> Iterator[None]:
    """vLLM in this process seeds every generator, replaces `torch.set_num_threads`, and takes settings from the environment."""
    mine, theirs, threads = random.getstate(), np.random.get_state(), torch.get_num_threads()
    set_threads, unset = torch.set_num_threads, {key: value for key, value in QUIET.items() if key not in os.environ}
    os.environ.update(unset)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for key in unset:
            os.environ.pop(key, None)
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
        random.setstate(mine)
        np.random.set_state(theirs)
