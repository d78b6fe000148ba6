"""Whether the hub can be reached, asked once: its own library tries each file of a checkpoint for half a minute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError

CONFIG = "config.json"


@contextmanager
def hub_asked_once(source: str) -> Iterator[None]:
    """Inside, where the hub can't be reached, only its cache is looked at.

    Raises:
        OSError: a hub id, or a folder that isn't here, is in neither.
    """
    if constants.HF_HUB_OFFLINE or Path(source).is_dir() or _is_reached(source):
        yield
        return
    if not isinstance(try_to_load_from_cache(source, CONFIG), str):
        raise OSError(
            "there is no such folder here; taken for a hub id, it isn't in the hub's cache, and that can't be reached"
        )
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def _is_reached(source: str) -> bool:
    try:
        get_hf_file_metadata(hf_hub_url(source, CONFIG), timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except (HfHubHTTPError, ValueError):
        return True  # it answers; or this is no hub id, which loading it says
    except Exception:  # the HTTP client's own, which differs from version to version
        return False
    return True
