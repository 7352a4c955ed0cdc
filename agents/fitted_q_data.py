"""Batches of dreamed moments, with the real chunks before them, for `agents/fitted_q.py`.

Shape suffixes as in `agents/moments.py`; B moments of one update, C channels of a stack (m times
those of one chunk, c).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from magi_world.agents.moments import Moments
from magi_world.errors import ConfigError, DatasetError
from magi_world.training.store import Store

if TYPE_CHECKING:
    import numpy as np

    from magi_world.agents.fitted_q import Args

_HELD_OUT = 32
"""the moments of every so many-th episode only measure"""


class Mirror(NamedTuple):
    """The same data in a mirror."""

    latents: "NDArray[np.float16]"
    """float16 `[M, Z, P, h, w]`, of mirrored frames"""
    action_A: Tensor
    """int64 `[A]`, what every action is in the mirror"""


def exchanged(mirror: Mapping[str, str], prompts: Sequence[str]) -> Tensor:
    """The index of what every prompt is in a mirror, int64 `[A]`.

    Raises:
        ConfigError: a prompt that is none of these, or that changes places with two.
    """
    action_A = torch.arange(len(prompts))
    for left, right in mirror.items():
        for prompt in (left, right):
            if prompt not in prompts:
                raise ConfigError(f"mirror has {prompt!r}, which is none of {list(prompts)}")
        i, j = prompts.index(left), prompts.index(right)
        if {int(action_A[i]), int(action_A[j])} not in ({i, j}, {i}):
            raise ConfigError(f"mirror exchanges {left!r} or {right!r} with two others")
        action_A[i], action_A[j] = j, i
    return action_A


class Batch(NamedTuple):
    """Some moments with what is learned of them."""

    stack: Tensor
    """`[B, C, h, w]`, without noise"""
    following: Tensor
    """`[B, A, K c, h, w]`, the newest of them where more follow than are seen"""
    reward: Tensor
    """`[B, A]`, of all chunks that follow, discounted"""
    continues: Tensor
    """`[B, A]`, what 1 behind them is worth, discounted to the last of them"""
    in_mirror: Tensor | None = None
    """`[n, C, h, w]`, the first n stacks in a mirror"""
    action_A: Tensor | None = None
    """`[A]`, what every action is there"""

    def mirrored(self, value_BA: Tensor) -> tuple[Tensor, Tensor]:
        """Stacks and values of the actions in them, the first n of both in the mirror."""
        if self.in_mirror is None or self.action_A is None:
            return self.stack, value_BA
        n = len(self.in_mirror)
        return (
            torch.cat([self.in_mirror, self.stack[n:]]),
            torch.cat([value_BA[:n, self.action_A], value_BA[n:]]),
        )


def discounted(moments: Moments, gamma: float) -> tuple[Tensor, Tensor]:
    """What all chunks give that follow, and what 1 behind them is worth at the last, `[N, A]`."""
    reward_NA, alive_NA = torch.zeros(moments.reward.shape[:2]), torch.ones(1)
    hold = moments.reward.shape[2]
    for k in range(hold):
        reward_NA = reward_NA + gamma**k * alive_NA * moments.reward[:, :, k]
        alive_NA = alive_NA * moments.continues[:, :, k]
    return reward_NA, gamma ** (hold - 1) * alive_NA


class Data:
    """Moments with the real chunks before them, as batches on a device.

    Raises:
        DatasetError: fewer moments than one batch.
    """

    def __init__(
        self,
        moments: Moments,
        store: Store,
        args: "Args",
        device: torch.device,
        *,
        mirror: Mirror | None = None,
    ) -> None:
        self.moments = moments
        self.device = device
        self.latents = torch.from_numpy(store.latents())
        self.mirror = mirror and Mirror(mirror.latents, mirror.action_A.to(device))
        self.before_m = torch.arange(-args.history, 0)
        self.reward_NA, self.continues_NA = discounted(moments, args.gamma)
        episode = torch.searchsorted(torch.from_numpy(store.offsets), moments.row, right=True) - 1
        held_out = episode % _HELD_OUT == 0
        self.train = (~held_out).nonzero().squeeze(1)
        self.held_out = held_out.nonzero().squeeze(1)
        if len(self.train) < args.batch_size:
            raise DatasetError(
                f"{len(self.train)} moments to learn from, fewer than one batch of "
                f"{args.batch_size}: give more data or a smaller batch_size"
            )

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Moments to learn from, drawn with a generator of the training's device.

        Half of them are to be seen in the mirror, if there is one.
        """
        number_B = torch.randint(
            len(self.train), (count,), generator=generator, device=generator.device
        )
        index_B = self.train[number_B.cpu()]
        batch = self.batch(index_B)
        if self.mirror is None:
            return batch
        latents = torch.from_numpy(self.mirror.latents)
        in_mirror = self._stack(latents, index_B[: count // 2])
        return batch._replace(in_mirror=in_mirror, action_A=self.mirror.action_A)

    def batch(self, index_B: Tensor) -> Batch:
        """The moments of these numbers, as they are."""
        moments, device = self.moments, self.device
        following_BAkZPhw = moments.following[index_B, :, -len(self.before_m) :].to(device)
        return Batch(
            stack=self._stack(self.latents, index_B),
            following=following_BAkZPhw.float().transpose(3, 4).flatten(2, 4),
            reward=self.reward_NA[index_B].to(device),
            continues=self.continues_NA[index_B].to(device),
        )

    def _stack(self, latents: Tensor, index_B: Tensor) -> Tensor:
        chunk_BmZPhw = latents[self.moments.row[index_B][:, None] + self.before_m]
        return chunk_BmZPhw.to(self.device).float().transpose(2, 3).flatten(1, 3)
