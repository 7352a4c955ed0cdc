"""Checkpoints from the Hugging Face hub: ``hub:org/name[/folder][@revision]``."""

from pathlib import Path

from magi_world.errors import ConfigError, WorldNotFound, missing_package

PREFIX = "hub:"

# parts that belong to every checkpoint of a repository with several
_SHARED = ("vae/*", "*/vae/*", "t5*/*", "*/t5*/*", "*special_tokens.npz")


def is_hub_name(name: str) -> bool:
    """Say whether a world's name points to the hub."""
    return name.startswith(PREFIX)


def parse(name: str) -> tuple[str, str, str | None]:
    """Split a name into repository, folder in it ("" for the whole) and revision.

    Raises:
        ConfigError: another form.
    """
    rest, _, revision = name.removeprefix(PREFIX).partition("@")
    parts = rest.split("/")
    if len(parts) < 2 or not all(parts) or any(part in (".", "..") for part in parts):
        raise ConfigError(f"{name!r} is not hub:org/name, with /folder or @revision behind it")
    return "/".join(parts[:2]), "/".join(parts[2:]), revision or None


def fetch(name: str) -> Path:
    """Download a checkpoint, or find it in the hub's own cache; return its folder.

    Of a repository with several checkpoints only the folder and the parts that they share are
    fetched.

    Raises:
        ConfigError: a name of another form.
        MissingPackage: huggingface_hub is absent.
        WorldNotFound: no such repository or folder, or no network and nothing in the cache.
    """
    repository, folder, revision = parse(name)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise missing_package("huggingface_hub", "hub", f"loading {name!r}") from error
    patterns = [f"{folder}/*", *_SHARED] if folder else None
    try:
        place = Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WorldNotFound(f"{name!r} cannot be fetched: {reason}") from None
    if not (place / folder).is_dir():
        raise WorldNotFound(f"the repository {repository} has no folder {folder!r}")
    return place / folder
