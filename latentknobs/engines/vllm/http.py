"""Two routes of the server (`vllm.endpoint_plugins`), under /v1, which vLLM's API key protects, and a check of all requests.

GET  /v1/latentknobs/policies                          names, knobs, levels and identities
POST /v1/latentknobs/choices {"keys": ["a", "b"]}      {"choices": [{"ids", "options", "values", "logps"}, ...]}
"""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from latentknobs.engines.vllm import policies
from latentknobs.engines.vllm.request import left_out
from latentknobs.engines.vllm.worker import first


class Endpoints:
    """The plug-in object."""

    name = "latentknobs_http"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Adds the routes, and `Refusing` behind vLLM's own check of keys."""
        app.add_middleware(Refusing)

        @app.get("/v1/latentknobs/policies")
        async def known(raw: Request) -> dict[str, Any]:
            return (await _ask(raw.app.state.latentknobs_engine, "latentknobs_policies"))[0]

        @app.post("/v1/latentknobs/choices")
        async def choices(raw: Request) -> Any:
            try:
                keys = (await raw.json())["keys"]
                if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
                    raise TypeError
            except (ValueError, KeyError, TypeError):
                return _refusal('The body is {"keys": [...]}: the latentknobs_key of each response to fetch.')
            found = await _ask(raw.app.state.latentknobs_engine, "latentknobs_take", keys)
            return {"choices": [next(filter(None, answers), None) for answers in zip(*found, strict=True)]}

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Remembers the engine, and the names that requests are checked against before they reach it."""
        state.latentknobs_engine = engine_client
        [found, *_] = await _ask(engine_client, "latentknobs_policies")
        policies.learn({name: tuple(one["picks"]) for name, one in found.items()})


class Refusing:
    """Middleware that refuses requests whose policy vLLM would leave out (`left_out`); bodies go on as they came."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """A request, as ASGI has it."""
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        seen = [await receive()]
        while seen[-1].get("more_body"):
            seen.append(await receive())
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if reason := left_out(path, b"".join(part.get("body", b"") for part in seen)):
            return await _refusal(reason)(scope, receive, send)
        waiting = iter(seen)

        async def again() -> Any:
            return next(waiting, None) or await receive()

        await self.app(scope, again, send)


def _refusal(message: str) -> JSONResponse:
    """As vLLM says it."""
    return JSONResponse({"error": {"message": message, "type": "BadRequestError", "param": None, "code": 400}}, 400)


async def _ask(client: Any, method: str, *args: Any) -> list[Any]:
    """The answer of each engine (data parallel); `collective_rpc` of vLLM's client returns that of the first engine only."""
    found = await client.engine_core.call_utility_all_async("collective_rpc", method, None, args, None)
    return [first(workers) for workers in found]
