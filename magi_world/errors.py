"""The errors of the package: one small family, each naming the value and what was allowed.

What a user gave wrong is a :class:`ValueError` subclass; what a user did at the wrong time is a
:class:`RuntimeError` subclass. Every class here also derives from :class:`MagiWorldError`, so one
``except`` catches the whole family.
"""


class MagiWorldError(Exception):
    """Base class of every error that the package raises on purpose."""


class ConfigError(MagiWorldError, ValueError):
    """A configuration that cannot exist: the field, its value and what is allowed."""


class CheckpointError(MagiWorldError, ValueError):
    """A weight file that does not fit: names the tensor and the file; nothing is half-loaded."""


class WorldNotFound(MagiWorldError, ValueError):
    """No world of that name or folder: lists the worlds that exist."""


class PromptError(MagiWorldError, ValueError):
    """A prompt that cannot be used: not text, empty, not printable or too long."""


class MediaError(MagiWorldError, ValueError):
    """A picture or video file that cannot be read or written: names the file and the reason."""


class ActionError(MagiWorldError, ValueError):
    """An action outside the action space."""


class ResetOptionError(MagiWorldError, ValueError):
    """An unknown, contradictory or malformed reset option: lists the known ones."""


class DatasetError(MagiWorldError, ValueError):
    """A dataset that cannot be used, or a place that cannot hold it."""


class AgentError(MagiWorldError, ValueError):
    """An agent folder or name that cannot be used: lists what exists."""


class RecipeError(MagiWorldError, ValueError):
    """A training recipe with an unknown key or a wrong value."""


class NotReset(MagiWorldError, RuntimeError):
    """A rollout that was stepped before its first reset: names the slots."""


class MissingPackage(MagiWorldError, ImportError):
    """An optional package is absent: the message ends with the pip command that brings it."""


def missing_package(package: str, extra: str, purpose: str) -> MissingPackage:
    """Build the error for an absent optional package, with the command that installs it."""
    return MissingPackage(
        f"{purpose} needs the package {package!r}: pip install 'magi-world[{extra}]'"
    )
