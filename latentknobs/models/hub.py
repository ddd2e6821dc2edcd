"""Adapters on the Hugging Face hub: up, and down by `user/name`."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from latentknobs.errors import AdapterError, first_line

FILES = ("knob_config.json", "*.safetensors", "README.md")  # nothing else of a repository is downloaded


def is_hub_name(text: str) -> bool:
    """Whether a text has the form `user/name` and is not a folder here."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", text) is not None and not Path(text).exists()


def download(name: str, revision: str | None = None) -> Path:
    """The local copy of an adapter on the hub at a branch, tag or commit; only its own kinds of files are fetched.

    AdapterError if there is none, or the hub cannot be reached and nothing was fetched before.
    """
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except RepositoryNotFoundError:
        raise AdapterError(
            f"There is no adapter {name!r}: it is neither a folder here nor a repository on the hub that you may read. Check the "
            "name, or log in with `hf auth login`."
        ) from None
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise AdapterError(f"The adapter {name!r} cannot be fetched from the hub: {first_line(error)}.") from None


def upload(folder: Path, name: str, *, private: bool = False, token: str | None = None) -> str:
    """Uploads an adapter's folder, creating the repository where there is none, and returns the commit's address.

    AdapterError if the hub refuses, or cannot be reached.
    """
    api = HfApi(token=token)
    try:
        api.create_repo(name, private=private, exist_ok=True)
        commit: Any = api.upload_folder(
            repo_id=name, folder_path=folder, allow_patterns=list(FILES), commit_message="An adapter of latentknobs"
        )
    except Exception as error:  # those of the hub's HTTP library come unwrapped, and that library changes between versions
        raise AdapterError(
            f"The adapter cannot be uploaded to {name!r}: {first_line(error)}. Check the name, and log in with `hf auth login`."
        ) from None
    return str(commit.commit_url)
