"""An adapter: what training leaves behind. A space, a head, and what is needed to refuse the wrong model.

On disk it is a folder: `knob_config.json`, `knob_head.safetensors`, `README.md` (a model card), and, when training made
it, `entropy_head.safetensors`: the baseline head that sees only the entropy. Loading imports nothing named in a file.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader
from safetensors.torch import load_file, save_file

import latentknobs
from latentknobs.engines.transformers import Attached
from latentknobs.engines.transformers.frozen import hidden_size, input_device
from latentknobs.errors import AdapterError, LatentKnobsError
from latentknobs.heads.features import width
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import Delimiter, Segmenter, parse_level
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies import HeadPolicy, Pick

FORMAT = 1
CONFIG, HEAD, ENTROPY, CARD = "knob_config.json", "knob_head.safetensors", "entropy_head.safetensors", "README.md"


def describe_model(model: Any) -> dict[str, Any]:
    """What an adapter remembers of its base model: name, family and sizes."""
    size = hidden_size(model)  # refuses what is no causal LM
    text = model.config.get_text_config()
    return {
        "name": str(getattr(model.config, "_name_or_path", "") or type(model).__name__),
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

    def attach(self, model: Any, *, pick: Pick = "greedy", seed: int = 0, strict: bool = True) -> Attached:
        """Makes `model.generate(...)` decode with this adapter, until `detach()` or the end of the `with` block.

        Args:
            strict: also refuse a model of the same shape but another name.

        Raises:
            AdapterError: the adapter was trained on another model.
        """
        check_base(self.base, describe_model(model), strict)
        for head in (self.head, self.entropy_head):
            if head is not None:
                head.to(input_device(model))
        return Attached(model, self.policy(pick), seed=seed)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes the adapter's folder and returns its path."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(_tensors(self.head), folder / HEAD)
        if self.entropy_head is not None:
            save_file(_tensors(self.entropy_head), folder / ENTROPY)
        else:
            (folder / ENTROPY).unlink(missing_ok=True)
        config = self._config()
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        card = Environment(loader=PackageLoader("latentknobs", "templates"), autoescape=False, trim_blocks=True)
        text = card.get_template("card.md").render(config=config, space=repr(self.space), training=self.training)
        (folder / CARD).write_text(text + "\n", encoding="utf-8")
        return folder

    def _config(self) -> dict[str, Any]:
        ids = list(self.segmenter.token_ids) if isinstance(self.segmenter, Delimiter) else None
        return {
            "format": FORMAT,
            "latentknobs": latentknobs.__version__,
            "base": self.base,
            "space": self.space.to_dict(),
            "level": self.segmenter.level,
            "delimiter_ids": ids,
            "features": list(self.features),
            "head": _shape(self.head),
            "entropy_head": None if self.entropy_head is None else _shape(self.entropy_head),
            "training": self.training,
        }

    @classmethod
    def from_pretrained(cls, folder: str | Path, model: Any = None) -> "KnobAdapter":
        """Reads an adapter's folder.

        Args:
            model: the LM it will be attached to; given here, a mismatch is refused now rather than at `attach`.

        Raises:
            AdapterError: a file is missing or damaged, the format is newer than this version, a knob is not installed,
                or the model is another one.
        """
        folder = Path(folder)
        config = _read_config(folder)
        try:
            space = KnobSpace.from_dict(config["space"])
            segmenter = parse_level(config["level"], token_ids=config["delimiter_ids"])
            features, base = tuple(config["features"]), config["base"]
            inputs = width(features, int(base["hidden_size"]))
            head = _head(folder / HEAD, space, inputs, config["head"])
            shape = config.get("entropy_head") or config["head"]  # older adapters have one shape for both
            entropy = _head(folder / ENTROPY, space, 1, shape) if (folder / ENTROPY).exists() else None
        except LatentKnobsError as error:
            raise AdapterError(f"The adapter {str(folder)!r} cannot be used here: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
            raise AdapterError(f"The adapter {str(folder)!r} has a damaged {CONFIG}: {error!r}. Save it again.") from None
        adapter = cls(space, head, segmenter, features, base, entropy, config.get("training", {}))
        if model is not None:
            check_base(base, describe_model(model), strict=True)
        return adapter


def check_base(saved: dict[str, Any], found: dict[str, Any], strict: bool) -> None:
    """Refuses a model that an adapter was not trained on.

    Raises:
        AdapterError: naming what differs.
    """
    told = {"hidden_size": "hidden size", "vocabulary": "vocabulary", "layers": "number of layers", "type": "family"}
    for key, words in told.items():
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
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except OSError as error:
        raise AdapterError(f"There is no adapter in {str(folder)!r}: {CONFIG} cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise AdapterError(f"The adapter {str(folder)!r} has a damaged {CONFIG}: {error}. Save it again.") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else None
        raise AdapterError(
            f"The adapter {str(folder)!r} has format {found}; this version of latentknobs ({latentknobs.__version__}) "
            f"reads format {FORMAT}. It was saved by {config.get('latentknobs') if isinstance(config, dict) else '?'}: "
            "install that version, or train again."
        )
    return config


def _shape(head: OptionHead) -> dict[str, Any]:
    return {"hidden": head.hidden, "rank": head.rank, "factorised": head.factorised}


def _tensors(head: OptionHead) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}


def _head(path: Path, space: KnobSpace, inputs: int, shape: dict[str, Any]) -> OptionHead:
    head = OptionHead(space, inputs, int(shape["hidden"]), bool(shape["factorised"]), shape.get("rank") or 0)
    try:
        head.load_state_dict(load_file(path))
    except OSError:
        raise AdapterError(f"{path.name} is missing. Copy the whole folder.") from None
    except Exception as error:
        wanted = f"{inputs} features, {space.K} options, hidden width {shape['hidden']}"
        raise AdapterError(f"{path.name} does not hold a head for {wanted}: {error}") from None
    return head.eval()
