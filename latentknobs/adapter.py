"""An adapter, the result of training: a space, a head, and what is needed to refuse the wrong model.

On disk it is a folder: `knob_config.json`, `knob_head.safetensors`, `README.md` (a model card), and, where training left one,
`rival_head.safetensors`: a head of the same kind that sees no hidden states. Loading imports nothing that a file names, believes
no size before the file has shown it, and accepts no weight that is not a number.
"""

import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from jinja2 import Environment, PackageLoader
from pydantic import BaseModel, ConfigDict, Field

import latentknobs
from latentknobs.data.disk import save_tensors, write_text
from latentknobs.engines.base import SECOND
from latentknobs.engines.openai import Client
from latentknobs.engines.transformers import Attached
from latentknobs.engines.transformers.frozen import hidden_size, input_device
from latentknobs.engines.transformers.settings import SamplingArguments
from latentknobs.engines.transformers.wrappers import layers_of
from latentknobs.errors import AdapterError, LatentKnobsError
from latentknobs.files import fit, path_of, public_name, read_json, without_folders
from latentknobs.heads.autodeco import read_autodeco
from latentknobs.heads.base import Head
from latentknobs.heads.features import HIDDEN, PORTABLE, check_features, check_rival, width
from latentknobs.heads.files import COPY, load_head, saved_shape
from latentknobs.heads.segmenters import Delimiter, Every, Segmenter, parse_level
from latentknobs.knobs.saved_knob import Word
from latentknobs.knobs.space import KnobSpace
from latentknobs.models import hub
from latentknobs.policies import Pick, Policy
from latentknobs.policies.heads import head_policy
from latentknobs.policies.names import policy_of

FORMAT = 1
CONFIG, HEAD, RIVAL, CARD = "knob_config.json", "knob_head.safetensors", "rival_head.safetensors", "README.md"
ENTROPY = "entropy_head.safetensors"  # the rival of older adapters, which reads the entropy alone
RESULT, GAIN = "held-out result", "gain over "  # what training notes of an evaluation
Size = Annotated[int, Field(ge=1, lt=2**31)]


class _Saved(BaseModel):
    model_config = ConfigDict(strict=True)


class SavedModel(_Saved):
    """`describe_model`."""

    name: Word
    type: Word
    hidden_size: Size
    layers: Annotated[int, Field(ge=0, lt=2**31)]
    vocabulary: Size


class SavedAdapter(_Saved):
    """`knob_config.json`, without its format and version. Older ones name the shape of a head that reads the entropy, or none."""

    base: SavedModel
    space: dict[str, Any]  # see `KnobSpace.from_dict`
    level: Word
    delimiter_ids: list[Annotated[int, Field(ge=0, lt=2**31)]] | None = None
    features: Annotated[list[Word], Field(max_length=64)]
    head: dict[str, Any]  # see `latentknobs.heads.files`
    rival: dict[str, Any] | None = None  # its shape
    rival_features: Annotated[list[Word], Field(max_length=64)] = ["entropy"]
    entropy_head: dict[str, Any] | None = None
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
        head: what is trained: features -> values of the knobs, or log-probabilities of options.
        segmenter: how long one choice lasts.
        features: what the head reads.
        base: `describe_model` of the LM it was trained on.
        rival: a head of the same kind that reads `rival_features`, statistics of the logits, if trained.
        training: settings and results worth keeping, shown in the model card.
    """

    space: KnobSpace
    head: Head
    segmenter: Segmenter
    features: tuple[str, ...]
    base: dict[str, Any]
    rival: Head | None = None
    rival_features: tuple[str, ...] = PORTABLE
    training: dict[str, Any] = field(default_factory=dict)

    def policy(self, pick: Pick = "greedy") -> Policy:
        """The head as a policy; `pick` says whether options, if it has any, are taken greedily (Eq. 4) or sampled (Eq. 5)."""
        return head_policy(self.head, self.space, self.segmenter, self.features, pick)

    def rival_policy(self, pick: Pick = "greedy") -> Policy | None:
        """The rival head as a policy, if the adapter has one."""
        if self.rival is None:
            return None
        return head_policy(self.rival, self.space, self.segmenter, self.rival_features, pick)

    @property
    def is_portable(self) -> bool:
        """Whether it fits any model: it reads no hidden states, and no token ids of one vocabulary."""
        return HIDDEN not in self.features and not isinstance(self.segmenter, Delimiter)

    def check_model(self, model: Any, strict: bool) -> None:
        """Refuses a model that the adapter does not fit (AdapterError); `strict` also one of the same shape but another name."""
        if not self.is_portable:
            check_base(self.base, describe_model(model), strict)

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
        self.check_model(inner, strict)
        return Attached(model, self.policy(pick), seed=seed, sampling_arguments=sampling_arguments)

    def client(
        self, client: Any, model: Any, tokenizer: Any, *, profile: str = "vllm", pick: Pick = "greedy", seed: int = 0,
        strict: bool = True,
    ) -> Client:  # fmt: skip
        """A client of an OpenAI-compatible server whose requests carry what this adapter, of level `sequence`, chooses for them.

        Args:
            client: `openai.OpenAI` or `openai.AsyncOpenAI`.
            model, tokenizer: the served LM in this process; it reads the prompts.
            profile, seed: see `latentknobs.engines.openai.Client`.
            strict: see `attach`.

        Raises:
            AdapterError: the adapter was trained on another model.
            ConfigError: it chooses within responses, or what such a server cannot express.
        """
        self.check_model(model, strict)
        self.head.to(input_device(model))
        return Client(client, self.policy(pick), model=model, tokenizer=tokenizer, profile=profile, seed=seed)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes the adapter's folder and returns its path. Folders of this machine are left out of what is written."""
        folder = path_of(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(self.head.state_dict(), folder / HEAD)  # first: a full disk then leaves an adapter that was here as it was
        for stale in (ENTROPY, RIVAL):
            (folder / stale).unlink(missing_ok=True)
        if self.rival is not None:
            save_tensors(self.rival.state_dict(), folder / RIVAL)
        config = self._config()
        card = Environment(loader=PackageLoader("latentknobs", "templates"), autoescape=False, trim_blocks=True)
        card.filters["cell"] = lambda value: " ".join(str(value).split()).replace("|", "\\|")
        notes: dict[str, Any] = config["training"]
        text = card.get_template("card.md").render(
            config=config, space=repr(self.space), portable=self.is_portable, is_guided=SECOND in self.space.needs,
            result=notes.get(RESULT), options=self.space.K,
            notes={n: v for n, v in notes.items() if v != "None" and n not in (RESULT, "choice") and not n.startswith(GAIN)},
            gains={name.removeprefix(GAIN): note for name, note in notes.items() if name.startswith(GAIN)},
        )  # fmt: skip
        write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")
        write_text(folder / CARD, text + "\n")
        return folder

    def push_to_hub(self, name: str, *, private: bool = False, token: str | None = None) -> str:
        """Uploads the adapter and its model card as `user/name` to the Hugging Face hub, and returns the commit's address.

        Raises:
            AdapterError: the hub refuses, or cannot be reached.
        """
        with tempfile.TemporaryDirectory() as folder:
            return hub.upload(self.save_pretrained(folder), name, private=private, token=token)

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
            "head": saved_shape(self.head),
            "rival": None if self.rival is None else saved_shape(self.rival),
            "rival_features": list(self.rival_features),
            "training": notes,
        }

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], model: Any = None, *, revision: str | None = None) -> "KnobAdapter":
        """Reads an adapter's folder, or fetches it from the hub.

        Args:
            folder: a folder here, or `user/name` on the Hugging Face hub.
            revision: a branch, tag or commit there.
            model: the LM it will be attached to; with it, a mismatch is refused now rather than at `attach`.

        Raises:
            AdapterError: a file is missing or damaged, a weight is not a number, the format is newer than this version, a knob
                is not installed, or the model is another one.
        """
        folder = hub.download(str(folder), revision) if hub.is_hub_name(str(folder)) else path_of(folder)
        config = _read_config(folder)
        try:
            saved: SavedAdapter = fit(config, SavedAdapter)
        except ValueError as error:
            raise AdapterError(f"The adapter {str(folder)!r} has a damaged {CONFIG}: {error}. {COPY}") from None
        try:
            space = KnobSpace.from_dict(saved.space)
            segmenter = parse_level(saved.level, token_ids=saved.delimiter_ids)
            features = check_features(saved.features)
            head = load_head(folder / HEAD, space, width(features, saved.base.hidden_size), saved.head)
            rival, also = _load_rival(folder, saved, space)
        except LatentKnobsError as error:
            raise AdapterError(f"The adapter {str(folder)!r} cannot be used here: {error}") from error
        adapter = cls(space, head, segmenter, features, saved.base.model_dump(), rival, also, saved.training)
        if model is not None:
            adapter.check_model(model, strict=True)
        return adapter

    @classmethod
    def from_autodeco(cls, folder: str | os.PathLike[str], model: Any = None) -> "KnobAdapter":
        """Reads heads that the authors of AutoDeco released (arXiv 2510.26697): temperature from 0 to 2, top-p from 0 to 1.

        Args:
            folder: a checkpoint of theirs, of the heads alone or merged with the model (see `latentknobs.heads.autodeco`).
            model: the LM it will be attached to; with it, a mismatch is refused now rather than at `attach`.

        Raises:
            AdapterError: the folder is not such a checkpoint or is damaged, or the model is another one.
        """
        path = path_of(folder)
        head, base = read_autodeco(path)
        found = None if model is None else describe_model(layers_of(model)[-1])
        base["type"] = base["type"] or (found or {}).get("type")
        if base["type"] is None:
            raise AdapterError(
                f"The checkpoint in {str(path)!r} does not name the family of its model. Pass model=, the model itself."
            )
        if found is not None:
            check_base(base, found, strict=False)
        return cls(head.space, head, Every(1), (HIDDEN,), base, training={"source": f"AutoDeco checkpoint {path.name}"})


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
        policy: a policy, an adapter, its folder or name on the hub, or the name of a policy such as `edt:base=1.4,theta=3`.
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
    """The adapter of a folder that holds one, or of `user/name` on the hub; anything else as it is."""
    is_text = isinstance(spec, str | Path)
    is_adapter = is_text and (os.path.exists(path_of(spec) / CONFIG) or hub.is_hub_name(str(spec)))
    return KnobAdapter.from_pretrained(spec) if is_adapter else spec


def _load_rival(folder: Path, saved: SavedAdapter, space: KnobSpace) -> tuple[Head | None, tuple[str, ...]]:
    """The rival head and what it reads."""
    if os.path.lexists(folder / RIVAL) and saved.rival is not None:  # a link to nothing is a fault
        features = check_rival(saved.rival_features)
        return load_head(folder / RIVAL, space, len(features), saved.rival), features
    if os.path.lexists(folder / ENTROPY):
        return load_head(folder / ENTROPY, space, 1, saved.entropy_head or saved.head), ("entropy",)
    return None, PORTABLE


def check_base(saved: dict[str, Any], found: dict[str, Any], strict: bool) -> None:
    """Refuses a model that an adapter was not trained on: an AdapterError names what differs."""
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
    if not os.path.exists(folder / CONFIG):
        raise AdapterError(f"There is no adapter in {str(folder)!r}: it has no {CONFIG}. Give an adapter's folder.")
    config: dict[str, Any] = read_json(folder / CONFIG, dict[str, Any], AdapterError, COPY)
    if type(found := config.get("format")) is not int or found != FORMAT:
        raise AdapterError(
            f"The adapter {str(folder)!r} has format {found!r:.40}; this version of latentknobs "
            f"({latentknobs.__version__}) reads format {FORMAT}. It was saved by {config.get('latentknobs', '?')!r:.40}: install "
            "that version, or train again."
        )
    return config
