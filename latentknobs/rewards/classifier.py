"""A reward model: a sequence classifier of transformers, from a folder or the hub."""

from typing import Any

from latentknobs.errors import BrokenRewardError, ConfigError, RewardError, first_line
from latentknobs.rewards.returned import Failed
from latentknobs.rewards.text import Messages, Texts, text_of

NO_LIMIT = 10**9  # tokenizers without a known limit report a larger number


class Classifier:
    """What a sequence-classification model says of prompt and completion.

    A model with one output (a reward model) gives that logit. One with several labels gives the log-probability of `label`:
    it orders completions as the probability does, and does not tie where that rounds to 1.

    A conversation goes through the chat template of the model's own tokenizer, with the completion as the assistant's last
    message. A plain prompt and its completion are read as one text. What is longer than the model can read has no score;
    nothing is cut. Only safetensors are loaded, and no code of the model's own.

    Args:
        path: folder or hub id.
        label: name or index of the label whose probability is wanted; only for a model with several.
        batch_size: texts in one forward pass. They are padded on the right; a model without a padding token reads one by one.
        device: `auto` (a GPU if there is one), `cpu`, `cuda:1`, ...
        dtype: of the weights; `auto` is that of the file.
    """

    def __init__(
        self, path: str, label: str | int | None = None, batch_size: int = 16, device: str = "auto", dtype: str = "auto"
    ) -> None:
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(f"The reward 'classifier' has batch_size={batch_size!r}: give a whole number from 1.")
        self.path, self.batch_size = path, batch_size
        self.__name__ = f"classifier({path})"
        self.model, self.tokenizer = _load(self.path, str(device), dtype)
        config = self.model.config
        self.label = _label(self.path, config, label)
        text = config.get_text_config()  # a decoder finds the last real token by the padding token of its config
        self.pad = text.pad_token_id = self.tokenizer.pad_token_id if text.pad_token_id is None else text.pad_token_id
        limits = (self.tokenizer.model_max_length, getattr(config, "max_position_embeddings", None))
        self.limit = min((limit for limit in limits if limit and limit < NO_LIMIT), default=None)

    @property
    def version(self) -> str | None:
        """The commit that the hub sent; the content of a folder counts by itself."""
        return getattr(self.model.config, "_commit_hash", None)

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float]:
        rows = [self._ids(*row) for row in zip(prompts, completions, strict=True)]
        values: list[float] = [
            Failed(f"Its {len(ids)} tokens are not between 1 and the {self.limit} that {self.path!r} can read.") for ids in rows
        ]
        readable = [n for n, ids in enumerate(rows) if ids and (self.limit is None or len(ids) <= self.limit)]
        readable.sort(key=lambda n: len(rows[n]))
        size = self.batch_size if self.pad is not None else 1
        for start in range(0, len(readable), size):
            batch = readable[start : start + size]
            for n, value in zip(batch, self._scores([rows[n] for n in batch]), strict=True):
                values[n] = value
        return values

    def _ids(self, prompt: str | Messages, completion: str | Messages) -> list[int]:
        if isinstance(prompt, str):
            return list(self.tokenizer(prompt + text_of(completion))["input_ids"])
        if not self.tokenizer.chat_template:
            raise BrokenRewardError(
                f"The prompts are conversations, but the tokenizer of the reward model {self.path!r} has no chat template. "
                "Give a reward model for chats, or plain prompts."
            )
        *before, last = prompt
        if last["role"] == "assistant":  # the completion goes on with it
            messages = [*before, {**last, "content": text_of([last]) + text_of(completion)}]
        else:
            messages = [*before, last, {"role": "assistant", "content": text_of(completion)}]
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        except Exception as error:  # a template may raise any exception
            raise RewardError(f"The chat template of {self.path!r} refuses the conversation: {error}") from error
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _scores(self, rows: list[list[int]]) -> list[float]:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        device = self.model.device
        ids_BL = pad_sequence([torch.tensor(ids) for ids in rows], batch_first=True, padding_value=self.pad or 0)
        mask_BL = pad_sequence([torch.ones(len(ids), dtype=torch.long) for ids in rows], batch_first=True)
        with torch.inference_mode():
            logits_BK = self.model(input_ids=ids_BL.to(device), attention_mask=mask_BL.to(device)).logits.float()
        if self.label is None:
            return list(logits_BK[:, 0].tolist())
        if self.model.config.problem_type == "multi_label_classification":
            return list(logits_BK[:, self.label].sigmoid().log().tolist())
        return list(logits_BK.log_softmax(-1)[:, self.label].tolist())


def _load(path: str, device: str, dtype: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        model, found = AutoModelForSequenceClassification.from_pretrained(
            path, use_safetensors=True, trust_remote_code=False, dtype=dtype, output_loading_info=True
        )
    except Exception as error:  # of many kinds, for a missing, damaged or unsuitable model
        raise ConfigError(
            f"The reward model {path!r} cannot be loaded: {first_line(error)}. Give a folder or hub id of a sequence "
            "classifier whose weights are safetensors, as in 'classifier:path=my/reward-model'."
        ) from error
    if found["missing_keys"]:
        raise ConfigError(
            f"{path!r} holds no trained classifier: the weights {', '.join(sorted(found['missing_keys'])[:3])} are missing, and "
            "random ones would judge at random. Give a model that was trained as a sequence classifier."
        )
    try:
        place = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        return model.to(place).eval().requires_grad_(False), tokenizer
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"The reward model {path!r} cannot be used on the device {device!r}: {first_line(error)}. Use auto, cpu or cuda."
        ) from None


def _label(path: str, config: Any, label: str | int | None) -> int | None:
    """The index of the wanted output; None where there is only one."""
    names = [str(config.id2label.get(n, n)) for n in range(config.num_labels)]
    if len(names) == 1:
        if label is not None:
            raise ConfigError(f"The reward model {path!r} has one output, so there is no label {label!r}. Leave label out.")
        return None
    if str(label) in names:
        return names.index(str(label))
    if str(label).isdecimal() and int(str(label)) < len(names):
        return int(str(label))
    fact = "needs a label" if label is None else f"has no label {label!r}"
    raise ConfigError(
        f"The classifier {path!r} {fact}: choose one of {', '.join(names)}, as in 'classifier:path=...,label={names[0]}'."
    )
