"""Find a file of the Hugging Face hub: in its cache on this machine, or else by downloading it into the cache."""

from contextlib import suppress

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url  # comes with timm
from huggingface_hub.errors import (
    EntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

PREFIXES = ("hf_hub:", "hf-hub:")  # timm's
WEIGHTS = "model.safetensors"  # what timm's push_to_hf_hub writes
REASONS = {
    OfflineModeIsEnabled: "the cache of the Hugging Face hub lacks it, and HF_HUB_OFFLINE forbids to ask the hub",
    EntryNotFoundError: "there is no such file",
    RevisionNotFoundError: "there is no such revision",
    RepositoryNotFoundError: "there is no such repository, or it wants an access token",
}


def is_on_hub(path: str) -> bool:
    """Return whether a path names a file of the hub, as in hf_hub:OWNER/REPOSITORY/FILE."""
    return path.startswith(PREFIXES)


def local_path(name: str) -> str:
    """Return where on this machine a file of the hub is, downloading it if the cache lacks it.

    Args:
        name: hf_hub:OWNER/REPOSITORY/FILE; OWNER/REPOSITORY@REVISION for another revision than the main one; without
            FILE, the weights that timm's push_to_hf_hub writes.

    Raises:
        ValueError: The name isn't of this form, or the file is neither in the cache nor to be had.
    """
    owner, _, rest = name.partition(":")[2].partition("/")
    repository, _, file = rest.partition("/")
    repository, _, revision = repository.partition("@")
    if not (owner and repository):
        raise ValueError("must be hf_hub:OWNER/REPOSITORY/FILE")
    place = {"repo_id": f"{owner}/{repository}", "filename": file or WEIGHTS, "revision": revision or None}
    try:
        # Ask once: hf_hub_download alone would ask again and again, for minutes if there is no network.
        get_hf_file_metadata(hf_hub_url(**place))
    except Exception as error:  # the hub's client has its own ways to fail, and so has the network
        with suppress(EntryNotFoundError):
            return hf_hub_download(**place, local_files_only=True)
        known = [reason for kind, reason in REASONS.items() if isinstance(error, kind)]
        unknown = f"the Hugging Face hub can't be reached ({_first_line(error)}), and its cache lacks the file"
        raise ValueError(known[0] if known else unknown) from None
    try:
        return hf_hub_download(**place)
    except Exception as error:
        raise ValueError(f"can't be downloaded ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return " ".join(str(error).partition("\n")[0].split()) or type(error).__name__
