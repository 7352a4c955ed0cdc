"""Operations registered with torch, so that torch.compile, CUDA graphs and autograd know them.

Eager calls need none of this and go past it where they can: a call through torch's dispatcher into
Python costs some ten microseconds.
"""

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "magi_world"
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")


def refuse_gradients(name: str, why: str, *arguments: Any) -> None:
    """Refuse arguments that need a gradient which an operation does not have.

    Raises:
        RuntimeError: there is one, and gradients are enabled.
    """
    if torch.is_grad_enabled() and any(
        isinstance(x, torch.Tensor) and x.requires_grad for x in arguments
    ):
        raise RuntimeError(f"{name} {why} and has no gradient: call it under torch.no_grad() or "
                           "torch.inference_mode()")  # fmt: skip


def register(
    schema: str,
    forward: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    setup_context: Callable[[Any, tuple[Any, ...], Any], None] | None = None,
    backward: Callable[..., Any] | None = None,
    inference_only: str = "",
) -> Any:
    """Register an operation as ``torch.ops.magi_world.NAME``.

    Args:
        schema: ``NAME(arguments) -> results`` in torch's notation; an argument that is written to
            is marked there.
        forward: computes it on real tensors of any device, without gradients.
        fake: the shapes and dtypes of the results, from tensors without data.
        setup_context: keeps what the backward needs, as of an ``autograd.Function``.
        backward: gradients of all arguments.
        inference_only: why it has no gradient, such as "writes to its arguments"; it then refuses
            arguments that need one, for which torch alone would give wrong ones or none.

    Returns:
        The operation; call it as a function.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, forward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
    if backward is not None:
        torch.library.register_autograd(
            f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=LIBRARY
        )
    operation = getattr(getattr(torch.ops, NAMESPACE), name).default

    def without_gradients(*arguments: Any) -> Any:
        refuse_gradients(name, inference_only, *arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return operation(*arguments)

    if inference_only:
        LIBRARY.impl(name, without_gradients, "Autograd")
    return operation
