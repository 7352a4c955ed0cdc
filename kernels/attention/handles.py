"""Numbers that stand for masks, because a registered operation takes numbers and tensors only."""

import itertools
from collections.abc import MutableMapping
from typing import Any
from weakref import WeakValueDictionary

_COUNT = itertools.count(1)
_MASKS: MutableMapping[int, Any] = WeakValueDictionary()


def new_handle(mask: Any) -> int:
    """A number for a mask, good in this process and as long as the mask lives."""
    handle = next(_COUNT)
    _MASKS[handle] = mask
    return handle


def mask_of(handle: int) -> Any:
    """The mask that a number stands for.

    Raises:
        ValueError: the mask is gone; a compiled function does not keep it alive until its
            backward has run, the caller has to.
    """
    mask = _MASKS.get(int(handle))
    if mask is None:
        raise ValueError(
            f"the mask {handle} is gone: keep it until the backward of the compiled call has run"
        )
    return mask
