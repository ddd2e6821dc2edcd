"""Hidden states at the LM head of vLLM: its layer `LogitsProcessor` is replaced by a subclass, as its registry of layers offers.

The layer (not to be confused with the sampler's logits processors) gets the hidden states of the rows that tokens are drawn
for, in the order of the sampler's rows, outside compiled graphs, once per step before the sampler; and again for prompt
log-probabilities.
`install` is an entry point of `vllm.general_plugins`: vLLM calls it in every process, whether or not latentknobs is used there.
"""

from collections.abc import Callable
from typing import Any

from latentknobs.engines.vllm.versions import check_version
from latentknobs.errors import ConfigError, DecodingError


class Tap:
    """What the LM head saw last.

    Attributes:
        is_wanted: whether any request of the batch reads it.
        is_edited: whether vLLM will change logits in place that a policy is to see unchanged.
    """

    def __init__(self) -> None:
        self._seen: tuple[Any, Any] | None = None
        self.is_wanted: Callable[[], bool] = lambda: False
        self.is_edited: Callable[[], bool] = lambda: False

    def see(self, hidden_ND: Any, logits_NV: Any) -> None:
        """Called by the layer; the logits are None on ranks that do not sample."""
        self._seen = None
        if logits_NV is not None and self.is_wanted():
            self._seen = hidden_ND, logits_NV.clone() if self.is_edited() else None

    def take(self, rows: int) -> tuple[Any, Any]:
        """Hidden states of the rows, and their unchanged logits if these are kept; DecodingError if they are not of this step."""
        seen, self._seen = self._seen, None
        if seen is None or len(seen[0]) != rows:
            found = "none" if seen is None else f"{len(seen[0])} hidden states"
            raise DecodingError(
                f"vLLM {check_version()} samples {rows} rows, and the LM head saw {found}: this way of running is not supported. "
                "Start without drafts and without batch-sharded sampling, or report the flags that it was started with."
            )
        return seen


TAP = Tap()  # of this process


def install() -> None:
    """Puts the tap into every model that is built from here on, if this vLLM is one that was tested."""
    try:
        check_version()
    except ConfigError:
        return  # a vLLM that is not used with latentknobs must not suffer; with it, the processor refuses to start
    from vllm.model_executor.custom_op import PluggableLayer, op_registry_oot
    from vllm.model_executor.layers.logits_processor import LogitsProcessor

    base: Any = op_registry_oot.get(LogitsProcessor.__name__, LogitsProcessor)  # a platform may have one of its own
    if hasattr(base, "see_latentknobs"):
        return

    class TappedLogitsProcessor(base):
        """vLLM's own, which shows the tap what it reads and what it returns."""

        see_latentknobs = staticmethod(TAP.see)

        def forward(self, lm_head: Any, hidden_states: Any, *args: Any, **more: Any) -> Any:
            logits = base.forward(self, lm_head, hidden_states, *args, **more)  # LoRA's layer calls this with a self of its own
            TAP.see(hidden_states, None if more.get("skip_gather") else logits)
            return logits

    op_registry_oot.pop(LogitsProcessor.__name__, None)
    PluggableLayer.register_oot(name=LogitsProcessor.__name__)(TappedLogitsProcessor)
