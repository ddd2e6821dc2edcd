"""`latentknobs serve` in processes of its own."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai

KEY = "a-key"
FLAGS = ["--dtype=float32", "--enforce-eager", "--max-model-len=256", f"--api-key={KEY}", "--host=127.0.0.1"]


class Server(NamedTuple):
    url: str
    process: subprocess.Popen[bytes]

    def get(self, path: str, key: str = KEY) -> httpx.Response:
        return httpx.get(self.url + path, headers={"Authorization": f"Bearer {key}"}, timeout=60)

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        return httpx.post(self.url + path, json=body, headers={"Authorization": f"Bearer {KEY}"} | headers, timeout=300)

    def choices(self, body: Any) -> httpx.Response:
        return self.post("/v1/latentknobs/choices", body)

    def client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.url + "/v1", api_key=KEY, timeout=300, max_retries=0)

    def memory(self) -> int:
        """Bytes that all of its processes hold."""
        ids = subprocess.run(["ps", "-o", "pid=", "-g", str(os.getpgid(self.process.pid))], capture_output=True, text=True).stdout
        status = [Path(f"/proc/{pid}/statm") for pid in ids.split()]
        return sum(int(path.read_text().split()[1]) * 4096 for path in status if path.exists())


@contextmanager
def serving(folder: Path, specs: Mapping[str, str], *flags: str) -> Iterator[Server]:
    """A server of the packaged LM with adapters by name, until the end; its log is in the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    named = [f"--adapter={name}={spec}" for name, spec in specs.items()]
    command = [sys.executable, "-m", "latentknobs", "serve", "testbed", *named, "--", f"--port={port}", *FLAGS, *flags]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        server = Server(f"http://127.0.0.1:{port}", process)
        try:
            until = time.monotonic() + 600
            while not is_up(server):
                assert process.poll() is None and time.monotonic() < until, (folder / "log").read_text()[-3000:]
                time.sleep(0.5)
            yield server
        finally:
            process.terminate()
            process.wait(60)


def is_up(server: Server) -> bool:
    try:
        return server.get("/health").status_code == 200
    except httpx.TransportError:
        return False
