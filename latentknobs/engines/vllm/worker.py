"""What vLLM's workers answer when they are called by name (`--worker-extension-cls`, `collective_rpc`)."""

from collections.abc import Sequence
from typing import Any

from latentknobs.engines.vllm import policies
from latentknobs.engines.vllm.progress import TRACES


class PolicyWorker:
    """Methods that vLLM adds to its worker."""

    device: Any

    def latentknobs_take(self, keys: Sequence[str]) -> list[dict[str, Any] | None]:
        """Choices and log-probabilities of finished responses, by key; each can be fetched once."""
        return [TRACES.take(key) for key in keys]

    def latentknobs_policies(self) -> dict[str, Any]:
        """The policies that requests may name."""
        return policies.described()

    def latentknobs_register(self, name: str, picks: policies.Picks) -> None:
        """Puts policies under a name; offline engines hand theirs over like this."""
        policies.register(name, picks, self.device)


def first(answers: Sequence[Any]) -> Any:
    """The answer of the worker that samples: with pipeline stages the others know nothing."""
    return next((answer for answer in answers if answer and any(answer)), answers[0])
