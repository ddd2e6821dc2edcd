"""Models in GGUF, llama.cpp's format: transformers reads the file and unpacks its weights into an ordinary model."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from latentknobs.errors import ConfigError, did_you_mean

ENDING = ".gguf"


def split_gguf(name: str, file: str | None) -> tuple[str, str | None]:
    """The folder or hub id of a model, and the name of the GGUF file in it; None where the model is not in GGUF.

    `name` may be the path of a `.gguf`, or `file` says it. ConfigError if there is no such file, or the package is missing.
    """
    is_path = name.endswith(ENDING)
    if is_path and file is not None:
        raise ConfigError(
            f"The model {name!r} is a GGUF file already, and gguf_file={file!r} names another. Leave one of them out."
        )
    if not is_path and file is None:
        return name, None
    folder, file = (str(Path(name).parent), Path(name).name) if is_path else (name, file)
    assert file is not None
    if Path(folder).is_dir() and not (Path(folder) / file).is_file():
        there = sorted(path.name for path in Path(folder).glob(f"*{ENDING}"))
        hint = did_you_mean(file, there) if there else f"It holds no {ENDING} file."
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
