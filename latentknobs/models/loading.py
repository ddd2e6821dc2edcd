"""The frozen language model: which device or devices it goes to, and how it is loaded."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from latentknobs import testbed
from latentknobs.config import TrainConfig
from latentknobs.engines.transformers.frozen import output_embeddings
from latentknobs.errors import ConfigError, did_you_mean, first_line
from latentknobs.files import path_of
from latentknobs.progress import console, processes, speaks

TESTBED = "testbed"
MAPS = ("auto", "balanced", "balanced_low_0", "sequential")  # device maps that use every device


def load_model(name: str, config: TrainConfig) -> tuple[Any, Any]:
    """A frozen causal LM in evaluation mode and its tokenizer, padded on the left; ConfigError if it cannot be loaded so."""
    spread = _spread(name, config)
    name = str(path_of(name)) if name.startswith("~") else name
    folder, file = split_gguf(name, config.gguf_file)
    device = None if spread else pick_device(config.device)
    if name == TESTBED and file is None:
        model, tokenizer = testbed.load_model(), testbed.load_tokenizer()
        if config.dtype != "auto":
            model = model.to(getattr(torch, config.dtype))
    else:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        trust = config.trust_remote_code
        for_tokenizer, for_model = gguf_arguments(file)
        try:
            with _bars_on_a_terminal():
                tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust, padding_side="left", **for_tokenizer)
                model = AutoModelForCausalLM.from_pretrained(
                    folder, dtype=config.dtype, trust_remote_code=trust, **spread, **for_model
                )
        except Exception as error:  # files of any kind and, where it is trusted, code of any kind
            raise ConfigError(
                f"The model {name!r} cannot be loaded: {first_line(error)}. Give as model a folder or hub id of a causal LM, "
                "a .gguf file, or `testbed` for the packaged one."
            ) from error
    return freeze(model if spread else model.to(device)), tokenizer


def split_gguf(name: str, file: str | None) -> tuple[str, str | None]:
    """The folder or hub id of a model, and the name of the GGUF file in it; None where the model is not in GGUF.

    `name` may be the path of a `.gguf`, or `file` says it. ConfigError if there is no such file, or the package is missing.
    """
    is_path = name.endswith(".gguf")
    if is_path and file is not None:
        raise ConfigError(
            f"The model {name!r} is a GGUF file already, and gguf_file={file!r} names another. Leave one of them out."
        )
    if not is_path and file is None:
        return name, None
    folder, file = (str(Path(name).parent), Path(name).name) if is_path else (name, file)
    assert file is not None
    if Path(folder).is_dir() and not (Path(folder) / file).is_file():
        there = sorted(path.name for path in Path(folder).glob("*.gguf"))
        hint = did_you_mean(file, there) if there else "It holds no .gguf file."
        raise ConfigError(f"There is no file {file!r} in {folder!r}. {hint}")
    if find_spec("gguf") is None:
        raise ConfigError(f"To read {file!r}, transformers needs the package gguf. pip install 'latentknobs[gguf]'.")
    return folder, file


def gguf_arguments(file: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of `from_pretrained` that read a GGUF file: those of the tokenizer, and those of the model."""
    if file is None:
        return {}, {}
    from transformers import GgufConfig

    named = {"gguf_file": file}
    return named, named | {"quantization_config": GgufConfig(dequantize=True)}  # heads read plain weights, and runs hash them


@contextmanager
def _bars_on_a_terminal() -> Iterator[None]:
    """Without the bars of transformers elsewhere, and in all processes but the first."""
    from transformers.utils import logging

    hides = logging.is_progress_bar_enabled() and not (speaks() and console.is_terminal)
    if hides:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if hides:
            logging.enable_progress_bar()


def pick_device(name: str) -> str:
    """The device of this process, one for each of several on CUDA; ConfigError if it cannot be used."""
    several = processes() > 1
    device = name
    if name == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and several:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        cause = first_line(error)
        fewer = " Start no more processes than there are devices." if several else ""
        raise ConfigError(f"The device {device!r} cannot be used: {cause}. Use auto, cpu or cuda.{fewer}") from None
    return device


def _spread(name: str, config: TrainConfig) -> dict[str, Any]:
    """Arguments of `from_pretrained` that put one model on several devices; none for a model on one."""
    plans = {key: value for key in ("device_map", "tp_plan") if (value := getattr(config, key)) is not None}
    if not plans:
        return {}
    shown = " and ".join(f"{key}={value!r}" for key, value in plans.items())
    if len(plans) > 1 or config.device != "auto":
        device = "" if config.device == "auto" else f" and device={config.device!r}"
        raise ConfigError(f"{shown}{device} each say where the model goes. Choose one of device, device_map and tp_plan.")
    if name == TESTBED:
        raise ConfigError(f"The packaged testbed model fits every device and has no {shown}. Leave it out, or name a model.")
    count = processes()
    if config.device_map is not None:
        if count > 1 and config.device_map in MAPS:
            raise ConfigError(
                f"{shown} puts one model on all devices, but each of the {count} processes would want them. Start one process, "
                "or use tp_plan='auto' instead."
            )
        return plans
    if config.tp_plan != "auto":
        raise ConfigError(f"There is no {shown}. The plan that comes with the model is tp_plan='auto'.")
    if count == 1:
        raise ConfigError(f"{shown} splits the model over processes, and there is one. Start with torchrun --nproc-per-node N.")
    return {"distributed_config": _tensor_parallel()}


def _tensor_parallel() -> Any:
    import transformers
    from transformers.distributed import DistributedConfig

    try:
        return DistributedConfig(tp_plan="auto")
    except TypeError:
        raise ConfigError(
            f"transformers {transformers.__version__} is too old for tp_plan. pip install --upgrade transformers, or set "
            "device_map='auto' instead."
        ) from None


def freeze(model: Any) -> Any:
    """The model in evaluation mode, without gradients."""
    output_embeddings(model)  # refuses what is not a causal LM
    return model.eval().requires_grad_(False)
