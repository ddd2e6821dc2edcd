"""A function of tensors as one CUDA graph: the host starts one thing on the GPU instead of a hundred small ones."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

AFTER = 3  # calls that are made as they are: short generations never pay for a graph


class Replay:
    """Calls a function; after a few calls with tensors of the same shapes on a GPU, replays what it does there instead.

    Args:
        function: pure, of tensors. One that makes the host wait for the GPU cannot be replayed, and is called every time. A
            replayed result, whatever tensors it holds, is overwritten by the next call.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._result: Any = None
        self._kind: Any = None
        self._calls = 0
        self._may = True

    @property
    def is_replaying(self) -> bool:
        """Whether the next call with the same shapes will be a replay."""
        return self._graph is not None

    def __call__(self, *given: Tensor) -> Any:
        kind = tuple((part.shape, part.dtype, part.device) for part in given)
        if kind != self._kind:
            self._kind, self._calls, self._graph, self._result, self._may = kind, 0, None, None, given[0].device.type == "cuda"
        if self._graph is None:
            self._calls += 1
            if not self._may or self._calls <= AFTER or not self._captured(given):
                return self._function(*given)
        torch._foreach_copy_(self._inputs, given)
        assert self._graph is not None
        self._graph.replay()
        return self._result

    def _captured(self, given: tuple[Tensor, ...]) -> bool:
        with torch.inference_mode(False):  # or they could not be written to outside of it
            self._inputs = [part.clone() for part in given]
        self._may = never_waits(lambda: self._function(*self._inputs))
        if self._may:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the GPU meanwhile
                self._result = self._function(*self._inputs)
            self._graph = graph
        return self._may


def never_waits(call: Callable[[], Any]) -> bool:
    """Whether a call starts work on the GPU without waiting for any of it. Made on a side stream, as before a capture."""
    before, stream = torch.cuda.get_sync_debug_mode(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            call()
        return True
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return False
    finally:
        torch.cuda.set_sync_debug_mode(before)
        torch.cuda.current_stream().wait_stream(stream)
