"""Heads on disk: weights in a safetensors file, and their shape as plain data.

Reading imports nothing that a file names: kinds are found among what is installed. It believes no size before the file has
shown it, and accepts no weight that is not a number.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from latentknobs.entry_points import load
from latentknobs.errors import AdapterError, first_line
from latentknobs.files import fit
from latentknobs.heads.base import Head
from latentknobs.heads.option_head import OptionHead
from latentknobs.knobs.space import KnobSpace

COPY = "Copy the whole folder again, or save the adapter again."
FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names


def saved_shape(head: Head) -> dict[str, Any]:
    """What is saved of a head beside its weights. An option head has no `kind`: earlier versions knew no other."""
    return ({} if head.kind == OptionHead.kind else {"kind": head.kind}) | head.shape()


def load_head(path: Path, space: KnobSpace, inputs: int, saved: dict[str, Any]) -> Head:
    """A head from a file of weights and its saved shape; AdapterError if either is damaged or of another head, or not numbers."""
    kind = head_kind(str(saved.get("kind", OptionHead.kind)))
    try:
        shape = fit({name: value for name, value in saved.items() if name != "kind"}, kind.Shape)
    except ValueError as error:
        raise AdapterError(f"the shape of its head is damaged: {error}. {COPY}") from None
    tensors = _tensors(path, kind, space, inputs, shape)
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):  # a new head draws weights, which are replaced
        head = kind.of_shape(space, inputs, shape)
    head.load_state_dict(tensors)
    for name, value in head.state_dict().items():  # the scale of a feature that never varied is infinite
        if not (value > 0).all() if name == "scale_F" else not value.isfinite().all():
            raise AdapterError(f"{path.name} has weights that are not numbers, in {name}: its training diverged, or the file is "
                               "damaged. Copy the folder again, or train again, with a lower learning_rate.")  # fmt: skip
    return head.eval()


def head_kind(name: str) -> type[Head]:
    """The class of a kind."""
    if name == OptionHead.kind:
        return OptionHead
    found = load("head", name)
    if not (isinstance(found, type) and issubclass(found, Head)):
        raise AdapterError(f"The head {name!r} is {found!r}, not a latentknobs Head. Repair its package.")
    return found


def _tensors(path: Path, kind: type[Head], space: KnobSpace, inputs: int, shape: Any) -> dict[str, Tensor]:
    """The file's header must show the shapes that the config claims before either is allocated."""
    sizes = ", ".join(f"{name} {value}" for name, value in shape.model_dump().items())
    what = f"{path.name} does not hold a head for {inputs} features of {space!r} ({sizes})"
    try:
        with torch.device("meta"):
            wanted = {name: list(value.shape) for name, value in kind.of_shape(space, inputs, shape).state_dict().items()}
        if path.exists() and not path.is_file():
            raise OSError("it is not a file")  # a pipe would never end
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {name: one.get_shape() if one.get_dtype() in FLOATS else one.get_dtype() for name, one in slices.items()}
        for name in sorted({*wanted, *found}):
            if wanted.get(name) != found.get(name):
                raise AdapterError(f"{what}: {name:.60} is {found.get(name)}, not {wanted.get(name)}. {COPY}")
        return load_file(path)
    except FileNotFoundError:
        raise AdapterError(f"{path.name} is missing. {COPY}") from None
    except (OSError, SafetensorError, RuntimeError) as error:
        raise AdapterError(f"{what}: {first_line(error)}. {COPY}") from None
