"""What an attached model carries, in a form that its copies and pickles leave behind.

A copy of an attached model (an EMA, a snapshot, another process) is the model as if nothing were attached.
"""

from collections.abc import Callable
from functools import update_wrapper
from types import MethodType
from typing import Any

import torch


class Hook:
    """A forward hook. Its copies do nothing."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    @torch.compiler.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The hook's own call."""
        return self.call(*args, **kwargs)

    def __reduce__(self) -> Any:
        return _inert_hook, ()


class Method:
    """A method that takes the place of a model's own. In copies of the model it is that one again.

    Args:
        model, name: whose method.
        call: what is called instead.
    """

    def __init__(self, model: Any, name: str, call: Callable[..., Any]) -> None:
        self.model, self.name, self.call = model, name, call
        self.is_of_class = name not in vars(model)
        self.original = getattr(model, name)
        update_wrapper(self, self.original)
        setattr(model, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The replacement."""
        return self.call(*args, **kwargs)

    def remove(self) -> None:
        """Puts the original back, unless another one has taken its place since."""
        self.call = self.original
        if vars(self.model).get(self.name) is self:
            if self.is_of_class:
                delattr(self.model, self.name)
            else:
                setattr(self.model, self.name, self.original)

    def __reduce__(self) -> Any:
        return (_method, (self.model, self.name)) if self.is_of_class else (_same, (self.original,))


def _inert_hook() -> Callable[..., None]:
    return _do_nothing


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _method(model: Any, name: str) -> Any:
    return MethodType(getattr(type(model), name), model)


def _same(value: Any) -> Any:
    return value
