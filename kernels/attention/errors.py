"""The errors of block-range attention."""


class SliceError(ValueError):
    """A slice list that is no mask: the slice and what is wrong with it."""


class BackendError(ValueError):
    """A backend that cannot take a call: the backend, the reason and what takes it."""


class BackendMissing(BackendError, ImportError):
    """A backend whose package is absent or does not import: ends with the pip command."""
