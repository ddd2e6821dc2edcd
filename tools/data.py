"""Fetches and converts the real weights and texts that tables need: `python -m tools.data` (`make data`).

Each item is fetched once, from a named revision on the Hugging Face hub, into `data/` (or LATENTKNOBS_DATA), and checked against
the hash that the tables were made with. What this machine cannot reach is said, and the rest goes on; what is there is never
fetched again. The instruct model has a command of its own: `make instruct`.
"""

import hashlib
import json
import os
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from huggingface_hub import HfFileSystem, constants, get_session, hf_hub_download
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from latentknobs.data.disk import replacing
from latentknobs.errors import first_line

SAMPLE = 2**21  # bytes of TinyStories that tables use
REVISIONS = {
    "karpathy/tinyllamas": "0bd21da7698eaf29a0d7de3992de8a46ef624add",
    "roneneldan/TinyStories": "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64",
    "Salesforce/wikitext": "b08601e04326c79dfdd32d625aee71d232d685c3",
    "openai/gsm8k": "740312add88f781978c0658806c59bc2815b9866",
}


@dataclass(frozen=True)
class Item:
    """One thing that tables need.

    Attributes:
        file: relative to the data folder; of a folder, the file that holds the content.
        repository, part: on the hub, at its revision, and what of it.
        licence: under which terms.
        size: in bytes.
        sha256: of the content; of weights, see `weights_hash`.
        make: writes it into the data folder.
    """

    file: str
    repository: str
    part: str
    licence: str
    size: int
    sha256: str
    make: Callable[[Path], None]

    def __str__(self) -> str:
        """What a reader needs to find it elsewhere."""
        where = f"https://huggingface.co/{self.repository} at {REVISIONS.get(self.repository, 'main')[:8]}, {self.part}"
        return f"{self.file} ({where}; {self.licence}; {self.size:,} bytes)"


def hash_of(path: Path) -> str:
    """Of a file's bytes; of safetensors, of names, shapes and numbers, because their headers may differ."""
    if path.suffix != ".safetensors":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    weights, digest = load_file(path), hashlib.sha256()
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])  # tied
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {tuple(value.shape)} ".encode() + value.float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def tinystories(path: Path) -> None:
    """The first bytes of the training text; the rest, two gigabytes, stays where it is."""
    name = "roneneldan/TinyStories"
    with HfFileSystem().open(f"datasets/{name}@{REVISIONS[name]}/TinyStories-train.txt", "rb", block_size=SAMPLE) as file:
        path.write_bytes(file.read(SAMPLE))


def wikitext(path: Path) -> None:
    """The lines of the validation text, as its authors wrote them."""
    path.write_text("".join(_column("Salesforce/wikitext", "wikitext-2-v1/validation-00000-of-00001.parquet", "text")), "utf-8")


def gsm8k(path: Path) -> None:
    """Questions and answers as JSON lines."""
    file = "main/train-00000-of-00001.parquet"
    rows = zip(_column("openai/gsm8k", file, "question"), _column("openai/gsm8k", file, "answer"), strict=True)
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows), "utf-8")


def _column(repository: str, file: str, column: str) -> list[str]:
    import pyarrow.parquet

    path = hf_hub_download(repository, file, repo_type="dataset", revision=REVISIONS[repository])
    table = pyarrow.parquet.read_table(path, columns=[column])
    values: list[str] = table[column].to_pylist()
    return values


def stories260k(path: Path) -> None:
    """The llama2.c model and its tokenizer, in transformers format."""
    name = "karpathy/tinyllamas"
    weights, vocabulary = (
        Path(hf_hub_download(name, f"stories260K/{file}", revision=REVISIONS[name])).read_bytes()
        for file in ("stories260K.bin", "tok512.bin")
    )
    convert(weights, vocabulary, path.parent)


def convert(weights: bytes, vocabulary: bytes, folder: Path) -> None:
    """Writes a model of llama2.c (its first format: seven integers, then float32 weights) as a transformers folder."""
    width, inner, layers, heads, kv_heads, size, length = struct.unpack("7i", weights[:28])
    numbers = torch.frombuffer(bytearray(weights[28:]), dtype=torch.float32)
    place = 0

    def take(*shape: int) -> Tensor:
        nonlocal place
        place += (count := torch.Size(shape).numel())
        return numbers[place - count : place].reshape(shape).clone()

    head, kv = width // heads, width // heads * kv_heads
    state = {"model.embed_tokens.weight": take(abs(size), width)}
    for name, shape in {
        "input_layernorm": (width,), "self_attn.q_proj": (width, width), "self_attn.k_proj": (kv, width),
        "self_attn.v_proj": (kv, width), "self_attn.o_proj": (width, width), "post_attention_layernorm": (width,),
        "mlp.gate_proj": (inner, width), "mlp.down_proj": (width, inner), "mlp.up_proj": (inner, width),
    }.items():  # fmt: skip
        for layer, value in enumerate(take(layers, *shape)):
            if name in ("self_attn.q_proj", "self_attn.k_proj"):  # rotary pairs: neighbours there, halves here
                value = rearrange(value, "(h d two) w -> (h two d) w", d=head // 2, two=2)
            state[f"model.layers.{layer}.{name}.weight"] = value
    state["model.norm.weight"] = take(width)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=abs(size), hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, max_position_embeddings=length, rms_norm_eps=1e-5, tie_word_embeddings=True,
    ))  # fmt: skip
    model.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]})
    tokenizer(vocabulary, abs(size)).save_pretrained(folder)
    model.save_pretrained(folder)  # last: its file is what says that the item is there


def tokenizer(vocabulary: bytes, size: int) -> PreTrainedTokenizerFast:
    """The SentencePiece BPE of a llama2.c vocabulary: longest length, then score, length and bytes of each token."""
    place, tokens = 4, ["<unk>", "<s>", "</s>"]
    for number in range(size):
        length = struct.unpack_from("i", vocabulary, place + 4)[0]
        text = vocabulary[place + 8 : place + 8 + length].decode("utf-8")
        place += 8 + length
        if number >= 3:
            tokens.append(text if text.startswith("<0x") else text.replace(" ", "▁"))
    rank = {token: number for number, token in enumerate(tokens)}
    merges = []
    for token in tokens[259:]:
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [pair for pair in pairs if pair[0] in rank and pair[1] in rank]
        merges += sorted(known, key=lambda pair: (rank[pair[0]], rank[pair[1]]))
    fast = Tokenizer(models.BPE(rank, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    fast.decoder = decoders.Sequence(steps)
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    fast.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in tokens[:3]])
    return PreTrainedTokenizerFast(tokenizer_object=fast, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


ITEMS = (
    Item(
        "stories260K/model.safetensors", "karpathy/tinyllamas", "stories260K/stories260K.bin and tok512.bin", "MIT", 1_044_992,
        "c2e1eddc44d76bfe569c3c03d0edb502c4668bfad4f413a332cbfc65ffe659c4", stories260k,
    ),
    Item(
        "tinystories/tinystories_sample.txt", "roneneldan/TinyStories", f"first {SAMPLE:,} bytes of TinyStories-train.txt",
        "CDLA-Sharing-1.0", SAMPLE, "5352b299dcb1a32898b2d779b145b5a05f3e1265953fd21c264c9f9f9c9ae33d", tinystories,
    ),
    Item(
        "wikitext-2/valid.txt", "Salesforce/wikitext", "wikitext-2-v1, validation", "CC BY-SA 3.0", 1_121_681,
        "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8", wikitext,
    ),
    Item(
        "gsm8k/train.jsonl", "openai/gsm8k", "main, train", "MIT", 4_166_206,
        "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465", gsm8k,
    ),
)  # fmt: skip


def fetch(item: Item, folder: Path, unreachable: str | None = None) -> str:
    """Makes sure of one item, and says in a line how it stands.

    Args:
        unreachable: why nothing can be fetched; then what is not there is missing.
    """
    path = folder / item.file
    if path.is_file():
        if is_right(path, item.sha256):
            return f"there     {item}"
        return f"different {item}: not what the tables were made with, so figures may differ. Delete it to fetch it again"
    if unreachable:
        return f"missing   {item}"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if path.suffix == ".safetensors":
            item.make(path)
        else:
            with replacing(path) as partial:
                item.make(partial)
    except Exception as error:  # errors of the hub's HTTP library come unwrapped, and that library changes
        return f"missing   {item}: {type(error).__name__}: {first_line(error)}"
    return f"fetched   {item}" if is_right(path, item.sha256) else fetch(item, folder)


def is_right(path: Path, sha256: str) -> bool:
    """Whether a file has this content; a damaged one has not."""
    try:
        return hash_of(path) == sha256
    except Exception:  # safetensors raises its own kinds
        return False


def unreachable() -> str | None:
    """Why the hub cannot be reached; None if it can. Asked once, so that four items do not each wait for it."""
    try:
        get_session().head(constants.ENDPOINT, timeout=20)
    except Exception as error:
        return first_line(error)
    return None


def main() -> None:
    """Every item; ends with 1 where one is missing."""
    folder = Path(os.environ.get("LATENTKNOBS_DATA", "data"))
    why = None if all((folder / item.file).is_file() for item in ITEMS) else unreachable()
    lines = []
    for item in ITEMS:
        lines.append(fetch(item, folder, why))
        print(lines[-1], flush=True)
    if missing := sum(line.startswith("missing") for line in lines):
        reach = (
            f" {constants.ENDPOINT} cannot be reached from here ({why}): put files of these names there yourself." if why else ""
        )
        sys.exit(f"{missing} of {len(ITEMS)} missing in {str(folder)!r}.{reach}")


if __name__ == "__main__":
    main()
