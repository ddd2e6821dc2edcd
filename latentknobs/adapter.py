"""An adapter, the result of training: a space, a head, and what is needed to refuse the wrong model.

On disk it is a folder: `knob_config.json`, `knob_head.safetensors`, `README.md` (a model card), and, where training left one,
`entropy_head.safetensors`: the baseline head that sees only the entropy. Loading imports nothing that a file names, believes no
size before the file has shown it, and accepts no weight that is not a number.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from jinja2 import Environment, PackageLoader
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

import latentknobs
from latentknobs.data.disk import replacing, save_tensors
from latentknobs.engines.transformers import Attached
from latentknobs.engines.transformers.frozen import hidden_size, input_device
from latentknobs.engines.transformers.settings import SamplingArguments
from latentknobs.engines.transformers.wrappers import layers_of
from latentknobs.errors import AdapterError, LatentKnobsError
from latentknobs.files import fit, path_of, public_name, read_json, without_folders
from latentknobs.heads.features import check_features, width
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import Delimiter, Segmenter, parse_level
from latentknobs.knobs.identity import Word
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies import HeadPolicy, Pick, Policy
from latentknobs.policies.names import policy_of

FORMAT = 1
CONFIG, HEAD, ENTROPY, CARD = "knob_config.json", "knob_head.safetensors", "entropy_head.safetensors", "README.md"
COPY = "Copy the whole folder again, or save the adapter again."
Size = Annotated[int, Field(ge=1, lt=2**31)]
FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names


class _Saved(BaseModel):
    model_config = ConfigDict(strict=True)


class SavedHead(_Saved):
    """The shape of a head; adapters from before there was a rank do not name it."""

    hidden: Size
    rank: Annotated[int, Field(ge=0, lt=2**31)] = 0
    factorised: bool


class SavedModel(_Saved):
    """`describe_model`."""

    name: Word
    type: Word
    hidden_size: Size
    layers: Annotated[int, Field(ge=0, lt=2**31)]
    vocabulary: Size


class SavedAdapter(_Saved):
    """`knob_config.json`, its format and version aside. Without `entropy_head`, both heads have the shape of `head`."""

    base: SavedModel
    space: dict[str, Any]  # see `KnobSpace.from_dict`
    level: Word
    delimiter_ids: list[Annotated[int, Field(ge=0, lt=2**31)]] | None = None
    features: Annotated[list[Word], Field(max_length=64)]
    head: SavedHead
    entropy_head: SavedHead | None = None
    training: dict[str, Any] = {}


def describe_model(model: Any) -> dict[str, Any]:
    """What an adapter remembers of its base model: name (of a model from a folder the folder's own), family and sizes."""
    size = hidden_size(model)  # refuses what is not a causal LM
    text = model.config.get_text_config()
    return {
        "name": public_name(str(getattr(model.config, "_name_or_path", ""))) or type(model).__name__,
        "type": str(text.model_type),
        "hidden_size": size,
        "layers": int(getattr(text, "num_hidden_layers", 0)),
        "vocabulary": int(text.vocab_size),
    }


@dataclass
class KnobAdapter:
    """A learned choice of decoding options for one frozen LM.

    Attributes:
        space: the options.
        head: features -> log-probabilities of options.
        segmenter: how long one choice lasts.
        features: what the head reads.
        base: `describe_model` of the LM it was trained on.
        entropy_head: the baseline head that reads only the entropy, if trained.
        training: settings and results worth keeping, shown in the model card.
    """

    space: KnobSpace
    head: OptionHead
    segmenter: Segmenter
    features: tuple[str, ...]
    base: dict[str, Any]
    entropy_head: OptionHead | None = None
    training: dict[str, Any] = field(default_factory=dict)

    def policy(self, pick: Pick = "greedy") -> HeadPolicy:
        """The head as a policy; `pick` says whether options are taken greedily (Eq. 4) or sampled (Eq. 5)."""
        return HeadPolicy(self.head, self.space, self.segmenter, self.features, pick)

    def entropy_policy(self, pick: Pick = "greedy") -> HeadPolicy | None:
        """The entropy-only baseline as a policy, if the adapter has one."""
        if self.entropy_head is None:
            return None
        return HeadPolicy(self.entropy_head, self.space, self.segmenter, ("entropy",), pick)

    def attach(
        self, model: Any, *, pick: Pick = "greedy", seed: int = 0, strict: bool = True,
        sampling_arguments: SamplingArguments | None = None,
    ) -> Attached:  # fmt: skip
        """Makes `model.generate(...)` decode with this adapter, until `detach()` or the end of the `with` block.

        Args:
            model: the causal LM that the adapter was trained on, or a wrapper of it (see `Attached`).
            strict: also refuse a model of the same shape but another name.
            sampling_arguments: "refuse" or "override" those that a caller passes to `generate`, see `Attached`.

        Raises:
            AdapterError: the adapter was trained on another model.
        """
        inner = layers_of(model)[-1]
        check_base(self.base, describe_model(inner), strict)
        for head in (self.head, self.entropy_head):
            if head is not None:
                head.to(input_device(inner))
        return Attached(model, self.policy(pick), seed=seed, sampling_arguments=sampling_arguments)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes the adapter's folder and returns its path. Folders of this machine are left out of what is written."""
        folder = path_of(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(_tensors(self.head), folder / HEAD)
        if self.entropy_head is not None:
            save_tensors(_tensors(self.entropy_head), folder / ENTROPY)
        else:
            (folder / ENTROPY).unlink(missing_ok=True)
        config = self._config()
        card = Environment(loader=PackageLoader("latentknobs", "templates"), autoescape=False, trim_blocks=True)
        card.filters["cell"] = lambda value: " ".join(str(value).split()).replace("|", "\\|")
        text = card.get_template("card.md").render(config=config, space=repr(self.space))
        for path, content in ((folder / CONFIG, json.dumps(config, indent=2)), (folder / CARD, text)):
            with replacing(path) as partial:
                partial.write_text(content + "\n", encoding="utf-8", errors="replace")
        return folder

    def _config(self) -> dict[str, Any]:
        ids = list(self.segmenter.token_ids) if isinstance(self.segmenter, Delimiter) else None
        notes = {name: without_folders(value) if isinstance(value, str) else value for name, value in self.training.items()}
        return {
            "format": FORMAT,
            "latentknobs": latentknobs.__version__,
            "base": self.base | {"name": public_name(str(self.base["name"]))},
            "space": self.space.to_dict(),
            "level": self.segmenter.level,
            "delimiter_ids": ids,
            "features": list(self.features),
            "head": _shape(self.head),
            "entropy_head": None if self.entropy_head is None else _shape(self.entropy_head),
            "training": notes,
        }

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], model: Any = None) -> "KnobAdapter":
        """Reads an adapter's folder.

        Args:
            model: the LM it will be attached to; with it, a mismatch is refused now rather than at `attach`.

        Raises:
            AdapterError: a file is missing or damaged, a weight is not a number, the format is newer than this version, a knob
                is not installed, or the model is another one.
        """
        folder = path_of(folder)
        try:
            saved: SavedAdapter = fit(_read_config(folder), SavedAdapter)
        except ValueError as error:
            raise AdapterError(f"The adapter {str(folder)!r} has a damaged {CONFIG}: {error}. {COPY}") from None
        try:
            space = KnobSpace.from_dict(saved.space)
            segmenter = parse_level(saved.level, token_ids=saved.delimiter_ids)
            features = check_features(saved.features)
            head = _load_head(folder / HEAD, space, width(features, saved.base.hidden_size), saved.head)
            has_entropy = (folder / ENTROPY).exists()
            entropy = _load_head(folder / ENTROPY, space, 1, saved.entropy_head or saved.head) if has_entropy else None
        except LatentKnobsError as error:
            raise AdapterError(f"The adapter {str(folder)!r} cannot be used here: {error}") from error
        adapter = cls(space, head, segmenter, features, saved.base.model_dump(), entropy, saved.training)
        if model is not None:
            check_base(adapter.base, describe_model(model), strict=True)
        return adapter


def attach(
    model: Any,
    policy: "Policy | KnobAdapter | str",
    *,
    pick: Pick = "greedy",
    seed: int = 0,
    strict: bool = True,
    tokenizer: Any = None,
    sampling_arguments: SamplingArguments | None = None,
) -> Attached:
    """Makes `model.generate(...)` decode with a policy, until `detach()` or the end of the `with` block.

    Args:
        model: a transformers causal LM, or a pipeline, PEFT, DDP, FSDP or compiled wrapper of one.
        policy: a policy, an adapter, an adapter's folder, or a name such as `edt:base=1.4,theta=3`.
        pick, strict: of an adapter, see `KnobAdapter.attach`.
        seed: decides what is drawn.
        tokenizer: of the model, for named policies that need one.
        sampling_arguments: "refuse" or "override" those that a caller passes to `generate`, see `Attached`.

    Raises:
        AdapterError: the adapter was trained on another model.
        UnknownNameError, ConfigError: the name is not known, or its settings do not fit.
    """
    policy = read_adapter(policy)
    if isinstance(policy, KnobAdapter):
        return policy.attach(model, pick=pick, seed=seed, strict=strict, sampling_arguments=sampling_arguments)
    return Attached(model, policy_of(policy, tokenizer), seed=seed, sampling_arguments=sampling_arguments)


def read_adapter(spec: Any) -> Any:
    """The adapter of a folder that holds one; anything else as it is."""
    is_folder = isinstance(spec, str | Path) and (path_of(spec) / CONFIG).exists()
    return KnobAdapter.from_pretrained(spec) if is_folder else spec


def check_base(saved: dict[str, Any], found: dict[str, Any], strict: bool) -> None:
    """Refuses a model that an adapter was not trained on.

    Raises:
        AdapterError: naming what differs.
    """
    compared = {"hidden_size": "hidden size", "vocabulary": "vocabulary", "layers": "number of layers", "type": "family"}
    for key, words in compared.items():
        if saved.get(key) != found[key]:
            raise AdapterError(
                f"This adapter was trained on {saved.get('name')!r} with {words} {saved.get(key)}, but the model "
                f"{found['name']!r} has {words} {found[key]}. Attach it to the model it was trained on, or train a new one."
            )
    if strict and Path(str(saved.get("name"))).name != Path(found["name"]).name:
        raise AdapterError(
            f"This adapter was trained on {saved.get('name')!r}, and the model calls itself {found['name']!r}. If they share "
            "their weights, or you know what you do, pass strict=False to attach."
        )


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).exists():
        raise AdapterError(f"There is no adapter in {str(folder)!r}: it has no {CONFIG}. Give an adapter's folder.")
    config: dict[str, Any] = read_json(folder / CONFIG, dict[str, Any], AdapterError, COPY)
    if config.get("format") != FORMAT:
        raise AdapterError(
            f"The adapter {str(folder)!r} has format {config.get('format')!r:.40}; this version of latentknobs "
            f"({latentknobs.__version__}) reads format {FORMAT}. It was saved by {config.get('latentknobs', '?')!r:.40}: install "
            "that version, or train again."
        )
    return config


def _shape(head: OptionHead) -> dict[str, Any]:
    return {"hidden": head.hidden, "rank": head.rank, "factorised": head.factorised}


def _tensors(head: OptionHead) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}


def _load_head(path: Path, space: KnobSpace, inputs: int, shape: SavedHead) -> OptionHead:
    """A head from a file. The file's header must show the shapes that the config claims before either is allocated."""

    def new() -> OptionHead:
        return OptionHead(space, inputs, shape.hidden, shape.factorised, shape.rank)

    what = f"{path.name} does not hold a head for {inputs} features, {space.K} options and hidden width {shape.hidden}"
    try:
        with torch.device("meta"):
            wanted = {name: list(value.shape) for name, value in new().state_dict().items()}
        if path.exists() and not path.is_file():
            raise OSError("it is not a file")  # a pipe would never end
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {name: one.get_shape() if one.get_dtype() in FLOATS else one.get_dtype() for name, one in slices.items()}
        for name in sorted({*wanted, *found}):
            if wanted.get(name) != found.get(name):
                raise AdapterError(f"{what}: {name:.60} is {found.get(name)}, not {wanted.get(name)}. {COPY}")
        tensors = load_file(path)
    except FileNotFoundError:
        raise AdapterError(f"{path.name} is missing. {COPY}") from None
    except (OSError, SafetensorError, RuntimeError) as error:
        raise AdapterError(f"{what}: {str(error).splitlines()[0]:.200}. {COPY}") from None
    head = new()
    head.load_state_dict(tensors)
    for name, value in head.state_dict().items():  # the scale of a feature that never varied is infinite
        if not (value > 0).all() if name == "scale_F" else not value.isfinite().all():
            raise AdapterError(f"{path.name} has weights that are not numbers, in {name}: its training diverged, or the file is "
                               "damaged. Copy the folder again, or train again, with a lower learning_rate.")  # fmt: skip
    return head.eval()
