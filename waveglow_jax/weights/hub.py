"""Downloads weights from the Hugging Face hub with its library and cache (extra `hub`)."""

import re
from pathlib import Path

from waveglow_jax.errors import UserError

_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_WANTED = ["*.safetensors", "config.json", "*.pt", "*.pth", "*.ckpt", "*.nemo"]


def is_hub_name(source: str) -> bool:
    """Whether it has the form OWNER/NAME or OWNER/NAME@REVISION."""
    return _NAME.fullmatch(source) is not None


def download(source: str) -> Path:
    """Downloads OWNER/NAME[@REVISION] and returns the folder of its weights in the hub's cache.

    Without a network (or with HF_HUB_OFFLINE set), it uses what the cache contains. Raises
    UserError if the library, the network, the model or the revision is missing.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ImportError:
        raise UserError(
            f"{source}: no such file or folder; if it is a model on the Hugging Face hub, install "
            "its library: pip install 'waveglow-jax[hub]'"
        ) from None
    named = _NAME.fullmatch(source)
    assert named is not None  # `is_hub_name`
    try:
        return Path(
            snapshot_download(named["repo"], revision=named["revision"], allow_patterns=_WANTED)
        )
    except LocalEntryNotFoundError:
        why = "neither in the hub's cache nor reachable; check the network"
    except HFValidationError as error:
        why = f"no name of a model ({' '.join(str(error).split())[:200]})"
    except HfHubHTTPError as error:
        why = f"not found on the Hugging Face hub ({' '.join(str(error).split())[:200]})"
    except OSError as error:
        why = f"cannot be fetched ({' '.join(str(error).split())[:200]})"
    raise UserError(f"{source}: no such file or folder, and {why}")
