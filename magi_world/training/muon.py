"""Muon: momentum whose update of a matrix is made orthogonal (Jordan et al. 2024).

torch has one, but it multiplies in bfloat16, which processors without such units emulate: there an
update takes longer than the gradient. This one multiplies in the dtype that it is told.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_MATCHED_RMS = 0.2  # typical size of an AdamW update, so that both take the same learning rate


def orthogonalise(matrix: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The nearest matrix `[m, n]` whose singular values all lie near 1 (Newton-Schulz).

    It is computed in ``dtype``, by default that of the matrix, and returned in the matrix's.
    """
    a, b, c = _COEFFICIENTS
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = (x / x.norm().clamp(min=1e-7)).to(dtype or matrix.dtype)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.to(matrix.dtype)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum with orthogonal updates, for the weight matrices of hidden layers.

    Updates are scaled to the size that AdamW's typically have, so a learning rate tuned for AdamW
    fits. Everything that is no matrix, embeddings and output layers belong to AdamW.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Set up; updates are computed in ``dtype``, by default that of the parameters.

        Raises `ValueError` for a parameter that is no matrix.
        """
        chosen = list(parameters)
        if wrong := [tuple(p.shape) for p in chosen if p.ndim != 2]:
            raise ValueError(f"Muon takes matrices only, got shapes {wrong[:3]}")
        super().__init__(chosen, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient; takes no closure."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                velocity: Tensor = state["momentum"]
                velocity.lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonalise(
                    torch.lerp(parameter.grad, velocity, group["momentum"]), self.dtype
                )
                size = _MATCHED_RMS * max(parameter.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * size)
