"""From the name of a learner to its class."""

from latentknobs.entry_points import load
from latentknobs.errors import PluginError
from latentknobs.learners.base import Learner


def find_learner(name: str) -> type[Learner]:
    """The installed learner of a name; UnknownNameError if there is none, PluginError if it is broken or not a learner."""
    kind = load("learner", name)
    if not (isinstance(kind, type) and issubclass(kind, Learner)):
        raise PluginError(f"The learner {name!r} is {kind!r}, not a latentknobs.learners.Learner. Repair its package.")
    return kind
