"""Two routes of the server (`vllm.endpoint_plugins`), under /v1 like those that vLLM's API key protects.

GET  /v1/latentknobs/policies                          names, knobs, levels and identities
POST /v1/latentknobs/choices {"keys": ["a", "b"]}      {"choices": [{"ids", "options", "values", "logps"}, ...]}
"""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from latentknobs.engines.vllm import policies
from latentknobs.engines.vllm.worker import first


class Endpoints:
    """The plug-in object."""

    name = "latentknobs_http"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Adds the routes."""

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
                message = 'The body is {"keys": [...]}: the latentknobs_key of each response to fetch.'
                return JSONResponse({"error": {"message": message, "type": "BadRequestError", "code": 400}}, 400)
            found = await _ask(raw.app.state.latentknobs_engine, "latentknobs_take", keys)
            return {"choices": [next(filter(None, answers), None) for answers in zip(*found, strict=True)]}

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Remembers the engine, and the names that requests are checked against before they reach it."""
        state.latentknobs_engine = engine_client
        [found, *_] = await _ask(engine_client, "latentknobs_policies")
        policies.learn({name: tuple(one["picks"]) for name, one in found.items()})


async def _ask(client: Any, method: str, *args: Any) -> list[Any]:
    """The answer of each engine (data parallel); `collective_rpc` of vLLM's client returns that of the first engine only."""
    found = await client.engine_core.call_utility_all_async("collective_rpc", method, None, args, None)
    return [first(workers) for workers in found]
