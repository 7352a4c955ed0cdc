"""The last observation of every slot of a batch, and how it is handed out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from magi_world.envs.spaces import LATENT_LIMIT
from magi_world.errors import CheckpointError
from magi_world.sampling.saved_state import check_like


class HasFrames(Protocol):
    """Chunks, as far as they are looked at."""

    @property
    def frames(self) -> Tensor:
        """Frames uint8 `[n, F, H, W, 3]`, decoded when first asked for."""


def pictures_of(chunks: HasFrames) -> npt.NDArray[np.uint8]:
    """Their frames. With it `functools.partial` makes callables for renderers that, unlike lambdas,
    can be pickled with their environment.
    """
    pictures: npt.NDArray[np.uint8] = chunks.frames.cpu().numpy()
    return pictures


def picture_of(chunks: HasFrames) -> npt.NDArray[np.uint8]:
    """Frames `[F, H, W, 3]` of the only row."""
    picture: npt.NDArray[np.uint8] = pictures_of(chunks)[0]
    return picture


class _Restored:
    """The chunks of a saved state."""

    def __init__(
        self, latents: Tensor, decode: Callable[[Tensor], Tensor], frames: Tensor | None
    ) -> None:
        self._latents, self._decode, self._frames = latents, decode, frames

    @property
    def frames(self) -> Tensor:
        """Frames as they were saved, else decoded, at most once."""
        if self._frames is None:
            self._frames = self._decode(self._latents)
        return self._frames


class ShownChunks:
    """What N slots show: the latents of their last chunks and the forms of them that are observed.

    Frames come as callables: they are decoded only if they are part of the observation.

    Args:
        latents: zeros `[N, 16, P, h, w]` on the world's device, until the first chunk comes.
        observations: "frames", "latent" or "both".
        output: "numpy" or "torch".
        frames_shape: of the frames of one chunk.
    """

    def __init__(
        self, latents: Tensor, observations: str, output: str, frames_shape: tuple[int, ...]
    ) -> None:
        self.latents = latents
        self.forms: dict[str, Tensor] = {}
        self.observations = observations
        self.output = output
        self._frames_shape = frames_shape

    def replace(
        self, latents: Tensor, frames: Callable[[], Tensor], slots: Sequence[int] | None = None
    ) -> None:
        """Take over the chunks of these slots, one row each, or of all.

        Tensors that were taken over before are never written to: others may still look at them.
        """
        new = {"latents": latents, **self._forms_of(latents, frames)}
        if slots is not None and len(slots) < len(self.latents):
            old = {"latents": self.latents, **self.forms}
            rows = torch.tensor(slots, device=latents.device)
            new = {name: part.index_copy(0, rows, new[name]) for name, part in old.items()}
        self.latents = new.pop("latents")
        self.forms = new

    def forget(self) -> None:
        """Show nothing, as before the first chunk."""
        self.latents = torch.zeros_like(self.latents)
        self.forms = {}

    def _forms_of(self, latents: Tensor, frames: Callable[[], Tensor]) -> dict[str, Tensor]:
        forms = {}
        if self.observations != "latent":
            forms["frames"] = frames()
        if self.observations != "frames":
            forms["latent"] = latents.clamp(-LATENT_LIMIT, LATENT_LIMIT)
        return forms

    def observation(self, rows: int | slice = slice(None)) -> Any:
        """Rows of the observation as the caller's own: copies that share nothing."""
        parts: dict[str, Any] = {name: part[rows].clone() for name, part in self.forms.items()}
        if self.output == "numpy":
            parts = {name: part.cpu().numpy() for name, part in parts.items()}
        return parts if self.observations == "both" else parts[self.observations]

    def state(self) -> dict[str, Tensor]:
        """Latents, and the frames where they are observed; copies."""
        frames = {name: part.clone() for name, part in self.forms.items() if name == "frames"}
        return {"latents": self.latents.clone(), **frames}

    def check(self, state: Any) -> None:
        """Check that a saved state is one of as many slots of such a world.

        Raises:
            CheckpointError: it is not.
        """
        if not isinstance(state, Mapping) or "latents" not in state:
            raise CheckpointError("a damaged state: shown lacks latents")
        check_like("shown latents", state["latents"], self.latents)
        if "frames" in state:
            like = torch.empty(
                len(self.latents), *self._frames_shape, dtype=torch.uint8, device="meta"
            )
            check_like("shown frames", state["frames"], like)

    def restore(self, state: Mapping[str, Tensor], decode: Callable[[Tensor], Tensor]) -> HasFrames:
        """Take over a saved state and return its chunks."""
        latents = state["latents"].to(self.latents.device, copy=True)
        saved = state["frames"].to(latents.device, copy=True) if "frames" in state else None
        chunks = _Restored(latents, decode, saved)
        self.replace(latents, lambda: chunks.frames)
        return chunks
