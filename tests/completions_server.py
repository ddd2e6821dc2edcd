"""A real OpenAI-compatible server for tests: the packaged LM behind `/v1/completions` and `/v1/chat/completions`, with faults.

It samples with transformers' own processors, in vLLM's order, and knows nothing of latentknobs.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers.generation import logits_process as processors

MESSAGES = "{% for message in messages %}{{ message.content }}{% endfor %}"


@dataclass
class Faults:
    """What goes wrong.

    Attributes:
        ignores: fields of requests that are not read.
        statuses: that the next requests for completions get, one after the other; 0 is a completion.
        dies_after: completions, after which connections are cut without an answer.
        raw: report log-probabilities of the LM itself.
        texts: leave out token ids.
        shift: added to every reported log-probability.
        top_k: its own default, where a request has none.
        owner: who the list of models says it is.
    """

    ignores: set[str] = field(default_factory=set)
    statuses: list[int] = field(default_factory=list)
    dies_after: int | None = None
    raw: bool = False
    texts: bool = False
    shift: float = 0.0
    top_k: int = 40
    owner: str = "vllm"


class CompletionsServer(ThreadingHTTPServer):
    """One model, one request at a time; `bodies` are those of all completions so far."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.tokenizer, self.faults, self.lock = model, tokenizer, Faults(), threading.Lock()
        self.bodies: list[dict[str, Any]] = []
        self.finished = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @torch.no_grad()
    def complete(self, ids: list[int], body: dict[str, Any]) -> tuple[list[int], list[float]]:
        def value(name: str, default: float) -> float:
            return default if name in self.faults.ignores else body.get(name, default)

        cold, chain = value("temperature", 1.0) == 0, []
        if value("repetition_penalty", 1.0) != 1:
            chain.append(processors.RepetitionPenaltyLogitsProcessor(value("repetition_penalty", 1.0)))
        if not cold:
            chain.append(processors.TemperatureLogitsWarper(float(value("temperature", 1.0))))
        if value("min_p", 0.0) > 0:
            chain.append(processors.MinPLogitsWarper(value("min_p", 0.0)))
        if value("top_k", self.faults.top_k) > 0:
            chain.append(processors.TopKLogitsWarper(int(value("top_k", self.faults.top_k))))
        if value("top_p", 1.0) < 1:
            chain.append(processors.TopPLogitsWarper(value("top_p", 1.0)))
        draws = torch.Generator().manual_seed(body.get("seed", 0) % 2**63)
        found, logps, cache, newest = list[int](), list[float](), None, torch.tensor([ids])
        for _ in range(body.get("max_tokens", 16)):
            out = self.model(input_ids=newest, past_key_values=cache, use_cache=True)
            cache, own_1V = out.past_key_values, out.logits[:, -1].float()
            logits_1V, so_far = own_1V, torch.tensor([ids + found])
            for one in chain:
                logits_1V = one(so_far, logits_1V)
            newest = logits_1V.argmax(-1, keepdim=True) if cold else torch.multinomial(logits_1V.softmax(-1), 1, generator=draws)
            found.append(int(newest))
            logps.append(float((own_1V if self.faults.raw else logits_1V).log_softmax(-1)[0, newest]) + self.faults.shift)
            if found[-1] in body.get("stop_token_ids", [self.tokenizer.eos_token_id]):
                break
        return found, logps


class Handler(BaseHTTPRequestHandler):
    server: CompletionsServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._json(200 if self.path.endswith("/models") else 404, {"object": "list", "data": [
            {"id": "testbed", "object": "model", "created": 0, "owned_by": self.server.faults.owner}
        ]})  # fmt: skip

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:  # one at a time
            faults = self.server.faults
            if faults.dies_after is not None and self.server.finished >= faults.dies_after:
                self.close_connection = True
                return
            if status := (faults.statuses.pop(0) if faults.statuses else 0):
                self._json(status, {"error": {"message": "not now", "type": "error"}})
                return
            if (xargs := body.get("vllm_xargs")) is not None:
                self._json(400, {"error": {"message": f"There is no adapter {xargs['latentknobs']!r}.", "type": "BadRequest"}})
                return
            self.server.bodies.append(body)
            is_chat, prompt = "messages" in body, body.get("prompt")
            if is_chat:
                prompt = "".join(message["content"] for message in body["messages"])
            ids = prompt
            if isinstance(prompt, str):
                ids = self.server.tokenizer(prompt, add_special_tokens=not is_chat)["input_ids"]
            found, logps = self.server.complete(ids, body)
            self.server.finished += 1
        self._answer(body, is_chat, ids, found, logps)

    def _answer(self, body: dict[str, Any], is_chat: bool, ids: list[int], found: list[int], logps: list[float]) -> None:
        tokenizer = self.server.tokenizer
        text, ended = tokenizer.decode(found, skip_special_tokens=True), found[-1] == tokenizer.eos_token_id
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop" if ended else "length"}
        choice |= {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
        if "logprobs" in body and not is_chat:
            choice["logprobs"] = {
                "tokens": [tokenizer.decode([token]) for token in found], "token_logprobs": logps,
                "text_offset": [0] * len(found), "top_logprobs": [{}] * len(found),
            }  # fmt: skip
        if body.get("return_token_ids") and not self.server.faults.texts:
            choice["token_ids"] = found
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(found), "total_tokens": len(ids) + len(found)}
        kind = "chat.completion" if is_chat else "text_completion"
        answer = {"id": "0", "object": kind, "created": 0, "model": "testbed", "choices": [choice], "usage": usage}
        if body.get("stream"):
            self._stream(answer, is_chat, text)
        else:
            self._json(200, answer)

    def _stream(self, answer: dict[str, Any], is_chat: bool, text: str) -> None:
        choice = {"index": 0, "finish_reason": None} | ({"delta": {"content": text}} if is_chat else {"text": text})
        kind = answer["object"] + (".chunk" if is_chat else "")
        data = f"data: {json.dumps(answer | {'object': kind, 'choices': [choice]})}\n\ndata: [DONE]\n\n".encode()
        self._send(200, "text/event-stream", data)

    def _json(self, status: int, content: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(content).encode())

    def _send(self, status: int, kind: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving() -> Iterator[CompletionsServer]:
    """The packaged LM, served from a thread."""
    from latentknobs import testbed

    server = CompletionsServer(testbed.load_model(), testbed.load_tokenizer())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
