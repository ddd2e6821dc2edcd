"""A discriminator D(e | s, a): how probable a property e of the finished response is, once token a follows the state s.

It reads the LM's hidden state of s, and knows tokens by a vector each, so that one small matrix product serves all of the
vocabulary: logit D(e | s, a) = b(s) + q(s) . k_a. The future discriminators of FUDGE (Yang and Klein 2021, arXiv 2104.05218) read
the text with each candidate token instead, one forward pass for each. On disk it is one file of safetensors.
"""

from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from latentknobs.errors import AdapterError, first_line
from latentknobs.files import path_of

FORMAT = "latentknobs discriminator 1"
COPY = "Copy the file again, or write it again with `latentknobs discriminator`."


class Discriminator(nn.Module):
    """See above.

    Args:
        hidden_size: D of the LM.
        vocabulary: V of the LM.
        rank: R, width of q and k.
    """

    def __init__(self, hidden_size: int, vocabulary: int, rank: int) -> None:
        super().__init__()
        self.register_buffer("mean_D", torch.zeros(hidden_size))
        self.register_buffer("std_D", torch.ones(hidden_size))
        self.state = nn.Linear(hidden_size, rank + 1)
        self.key_VR = nn.Parameter(torch.randn(vocabulary, rank) / rank**0.5)
        nn.init.zeros_(self.state.weight)
        nn.init.zeros_(self.state.bias)

    mean_D: Tensor
    std_D: Tensor

    def _state(self, hidden_ND: Tensor) -> tuple[Tensor, Tensor]:
        unit_ND = (hidden_ND - self.mean_D) / self.std_D
        state_NS = torch.nn.functional.linear(unit_ND, self.state.weight.to(unit_ND), self.state.bias.to(unit_ND))
        return state_NS[:, 0], state_NS[:, 1:]

    def forward(self, hidden_ND: Tensor, token_N: Tensor) -> Tensor:
        """(N,) log-odds of the property after one token each."""
        bias_N, query_NR = self._state(hidden_ND)
        return bias_N + (query_NR * self.key_VR[token_N]).sum(-1)

    def log_prob(self, hidden_ND: Tensor, vocabulary: int) -> Tensor:
        """(N, V) log D(e | s, a) of `vocabulary` tokens, fewer or more than it knows: it has no opinion on others."""
        bias_N, query_NR = self._state(hidden_ND)
        more = max(vocabulary - len(self.key_VR), 0)
        key_VR = torch.nn.functional.pad(self.key_VR, (0, 0, 0, more))[:vocabulary]
        return torch.nn.functional.logsigmoid(bias_N.unsqueeze(-1) + query_NR @ key_VR.T.to(query_NR))


@lru_cache(maxsize=4)
def _load(path: Path, changed: tuple[int, int]) -> tuple[Discriminator, str]:
    with safe_open(path, "pt") as file:
        notes = file.metadata() or {}
        if notes.get("format") != FORMAT:
            raise AdapterError(f"{str(path)!r} is not a discriminator of this version of latentknobs. {COPY}")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if not all(value.isfinite().all() for value in tensors.values()):
        raise AdapterError(f"{str(path)!r} has weights that are not numbers. {COPY}")
    (vocabulary, rank), hidden_size = tensors["key_VR"].shape, len(tensors["mean_D"])
    found = Discriminator(hidden_size, vocabulary, rank)
    found.load_state_dict(tensors)
    return found.eval().requires_grad_(False), notes.get("model", "?")


def load_discriminator(path: str | Path) -> tuple[Discriminator, str]:
    """The discriminator of a file (read again only if it changes), and the name of its LM; AdapterError if damaged."""
    path = path_of(path)
    try:
        found = path.stat()
        return _load(path, (found.st_mtime_ns, found.st_size))
    except FileNotFoundError:
        raise AdapterError(f"There is no discriminator {str(path)!r}. Write one with `latentknobs discriminator RUN`.") from None
    except (OSError, SafetensorError, RuntimeError, KeyError, ValueError) as error:
        if isinstance(error, AdapterError):
            raise
        raise AdapterError(f"{str(path)!r} is not a discriminator: {first_line(error)}. {COPY}") from None
