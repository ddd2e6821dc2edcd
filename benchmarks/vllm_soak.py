"""`latentknobs serve` under streams of the package `openai`: `.venv-vllm/bin/python -m benchmarks.vllm_soak [--alone]`.

Requests for seven policies and for none follow each other, in an order that never repeats, so that each has other company every
time; one in sixteen is left after a few tokens, as users do. Every text is compared with what transformers says, and every fourth
fetches its choices. Memory (RSS) of the server's processes is read every ten seconds. `--alone` puts the same number of requests
that name no policy on a vLLM that has no plug-in, which shows what memory vLLM takes by itself.
"""

import argparse
import asyncio
import itertools
import json
import logging
import os
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

import numpy as np
import openai
import torch

from latentknobs import testbed
from latentknobs.adapter import KnobAdapter, describe_model
from latentknobs.engines.transformers import TransformersEngine
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import parse_level
from latentknobs.heads.value_head import ValueHead
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies.names import policy_of
from latentknobs.testbed.model_files import MODEL_DIR

RULES = {"edt": "edt:base=1.4,theta=0.3", "mirostat": "mirostat:tau=3", "warm": "constant:temperature=1.3"}
EACH, TOKENS, SEED, EVERY = 24, 48, 7, 10  # prompts of each policy; seconds between readings of memory
FLAGS = "--dtype float32 --enforce-eager --max-model-len 256 --max-num-seqs 64 --block-size 32 --num-gpu-blocks-override 400"


class Job(NamedTuple):
    """A request, and what transformers says to it."""

    name: str | None
    row: int
    prompt: list[int]
    ids: tuple[int, ...]


def adapters() -> dict[str, KnobAdapter]:
    """Heads with random weights, which choose between their options at every level."""
    model, tokenizer = testbed.load_model(), testbed.load_tokenizer()
    torch.manual_seed(0)
    space, d = KnobSpace.of({"temperature": [0.0, 0.5, 1.0, 1.3]}, {"min_p": [0.0, 0.05, 0.2]}), model.config.hidden_size
    heads = {"token": OptionHead(space, d), "delimiter:.!?": OptionHead(space, d), "sequence": OptionHead(space, d)}
    for head in heads.values():
        torch.nn.init.normal_(head.mlp[-1].weight, std=0.5)  # type: ignore[arg-type]
    found = {
        level.partition(":")[0]: KnobAdapter(
            space, head.eval(), parse_level(level, tokenizer), ("hidden",), describe_model(model)
        )
        for level, head in heads.items()
    }
    values = ValueHead(KnobSpace.of({"temperature": [0.2, 1.4]}), d, hidden=32).eval()
    return found | {
        "values": KnobAdapter(values.space, values, parse_level("token", tokenizer), ("hidden",), describe_model(model))
    }


def jobs_of(known: dict[str, KnobAdapter], is_alone: bool) -> list[Job]:
    """`EACH` requests for each policy and for none."""
    tokenizer, reader, found = testbed.load_tokenizer(), TransformersEngine(testbed.load_model(), testbed.load_tokenizer()), []
    policies = {name: adapter.policy() for name, adapter in known.items()} | {name: policy_of(RULES[name]) for name in RULES}
    texts = iter(testbed.prompts("mixture", "eval", EACH * (len(policies) + 1)))
    for name in [*policies, None]:
        prompts = [tokenizer(row["prompt"]).input_ids for row in itertools.islice(texts, EACH)]
        name = None if is_alone else name
        policy = policies[name] if name else policy_of("greedy")
        expected = reader.sample(prompts, policy, max_new_tokens=TOKENS, seed=SEED)
        found += [Job(name, row, prompt, one.ids) for row, (prompt, one) in enumerate(zip(prompts, expected, strict=True))]
    return found


class Server:
    """vLLM's server in processes of its own."""

    def __init__(self, known: dict[str, KnobAdapter], is_alone: bool) -> None:
        folder = Path(mkdtemp(prefix="latentknobs-soak-"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        named = [f"--adapter={name}={one.save_pretrained(folder / name)}" for name, one in known.items()]
        named += [f"--adapter={name}={spec}" for name, spec in RULES.items()]
        flags, more = [*FLAGS.split(), "--host=127.0.0.1", f"--port={port}"], {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        command = [sys.executable, "-m", "latentknobs", "serve", "testbed", *named, "--", *flags]
        if is_alone:
            command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(MODEL_DIR), "--served-model-name=testbed",
                       "--generation-config=vllm", *flags]  # fmt: skip
            more["VLLM_PLUGINS"] = ""
        self.url, self.log = f"http://127.0.0.1:{port}/v1", folder / "log"
        with self.log.open("wb") as log:
            environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"} | more
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        self.client = openai.AsyncOpenAI(base_url=self.url, api_key="none", timeout=300)

    async def wait(self) -> None:
        """Until it answers."""
        while True:
            try:
                await self.client.models.list()
                return
            except openai.APIConnectionError:
                if self.process.poll() is not None:
                    raise SystemExit(self.log.read_text()[-3000:]) from None
                await asyncio.sleep(1)

    def memory(self) -> dict[str, float]:
        """MiB that its processes hold, by name."""
        ids = subprocess.run(["ps", "-o", "pid=", "-g", str(self.process.pid)], capture_output=True, text=True).stdout.split()
        found: Counter[str] = Counter()
        for pid in ids:
            if (folder := Path("/proc") / pid).exists():
                comm = (folder / "comm").read_text()  # policies run in the worker; the engine core schedules
                name = next((kind for kind in ("Worker", "Engine") if kind in comm), "server").lower()
                found[name] += int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return {name: size / 2**20 for name, size in found.items()}


class Retries(logging.Handler):
    """Counts requests that the package sent again by itself: a connection was closed while it went out."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts
        logging.getLogger("openai").setLevel(logging.INFO)
        logging.getLogger("openai").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        self.counts["retries"] += record.getMessage().startswith("Retrying")


class Soak:
    """Streams for a while, and what came of them."""

    def __init__(self, server: Server, jobs: list[Job], seconds: float) -> None:
        self.server, self.jobs, self.counts, self.until = server, jobs, Counter[str](), time.monotonic() + seconds
        self.levels: list[dict[str, float]] = []
        Retries(self.counts)

    async def run(self, streams: int) -> None:
        """All of them."""
        order = self._order()
        await asyncio.gather(self._watch(), *(self._streams(order) for _ in range(streams)))

    def _order(self) -> Iterator[tuple[int, Job]]:
        shuffled, numbers = random.Random(SEED), itertools.count()
        while True:
            for job in shuffled.sample(self.jobs, len(self.jobs)):
                yield next(numbers), job

    async def _watch(self) -> None:
        while time.monotonic() < self.until:
            await asyncio.sleep(EVERY)
            self.levels.append(self.server.memory())
            shown = {name: round(mib) for name, mib in self.levels[-1].items()}
            print(len(self.levels) * EVERY, shown, dict(self.counts), flush=True)

    async def _streams(self, order: Iterator[tuple[int, Job]]) -> None:
        while time.monotonic() < self.until:
            number, job = next(order)
            try:
                await self._stream(number, job)
            except openai.OpenAIError as error:
                self.counts["errors"] += 1
                print(f"{job.name}: {error!r}", flush=True)

    async def _stream(self, number: int, job: Job) -> None:
        key = f"{number}" if job.name and number % 4 == 0 else None
        extra: dict[str, Any] = {"return_token_ids": True, "temperature": 0.0}
        if job.name:
            fields = {"latentknobs": job.name, "latentknobs_seed": SEED, "latentknobs_row": job.row}
            extra = {"return_token_ids": True, "vllm_xargs": fields | ({"latentknobs_key": key} if key else {})}
        ids: list[int] = []
        found = await self.server.client.completions.create(
            model="testbed", prompt=job.prompt, max_tokens=TOKENS, stream=True, extra_body=extra
        )
        async for chunk in found:
            ids += getattr(chunk.choices[0], "token_ids", None) or []
            if number % 16 == 1 and len(ids) > 4:
                await found.close()
                self.counts["left"] += 1
                return
        self.counts["streams"] += 1
        self.counts["tokens"] += len(ids)
        self.counts["changed"] += tuple(ids) != job.ids
        if key:
            body = {"keys": [key]}
            answer: Any = await self.server.client.post("/latentknobs/choices", cast_to=object, body=body)
            self.counts["choices"] += 1
            self.counts["changed"] += tuple(answer["choices"][0]["ids"]) != job.ids


async def main() -> None:
    """Prints how memory went, and a summary as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--alone", action="store_true", help="vLLM without latentknobs")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    known = adapters()
    jobs, server = jobs_of(known, chosen.alone), Server(known, chosen.alone)
    try:
        await server.wait()
        soak = Soak(server, jobs, 60 * chosen.minutes)
        await soak.run(chosen.streams)
    finally:
        server.process.terminate()
        server.process.wait(60)
    total_N = np.array([sum(level.values()) for level in soak.levels])
    half = len(total_N) // 2
    slope = np.polyfit(np.arange(len(total_N) - half) * EVERY / 60, total_N[half:], 1)[0]
    print(json.dumps({
        **soak.counts, "errors": soak.counts["errors"], "retries": soak.counts["retries"], "minutes": chosen.minutes,
        "MiB at 10 s, after a minute, in the middle, at the end": [round(total_N[n]) for n in (0, min(5, half), half, -1)],
        "MiB a minute, second half": round(float(slope), 2),
    }))  # fmt: skip


if __name__ == "__main__":
    asyncio.run(main())
