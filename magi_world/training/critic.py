"""An adversarial critic: small things that a dream loses are what it learns to notice.

The energy score judges one chunk after one history. What it hardly sees is that a fireball which
keeps nine tenths of its light in every chunk is gone after ten of them. A critic that is shown
consecutive chunks, real ones and the model's own after the model's own, finds just that, and its
slope tells the model what was missing (adversarial training on a model's own rollouts: Huang et
al. 2025, "Self Forcing"; of one-step generators: Lin et al. 2025).

The two are compared in pairs, place by place (relativistic loss, Jolicoeur-Martineau 2018), and the
critic is kept smooth around real and generated windows by what a little noise changes of its
answer, which needs no second derivative.

Shape suffixes: S sequences, L chunks in a sequence, R samples, G chunks, N windows (one per judged
chunk), C channels, P latent frames, h and w the latent grid, K chunks of a window.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

WINDOW = 4
"""chunks that the critic sees together, the judged one included"""
_WIDTH = 64
_NOISE = 0.1  # deviations of a latent
_SMOOTHNESS = 2.0


class Critic(nn.Module):
    """One number a place: how much more real a window looks there than what it is compared with.

    Args:
        chunk_channels: channels of a chunk, latent frames side by side (C * P).
        num_actions: prompts of the world; every chunk of a window brings its own.
    """

    def __init__(self, chunk_channels: int, num_actions: int) -> None:
        super().__init__()
        self.num_actions = num_actions
        channels = WINDOW * (chunk_channels + num_actions)
        self.enter = nn.Conv2d(channels, _WIDTH, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1) for _ in range(3))
        self.judge = nn.Conv2d(_WIDTH, 1, 1)

    def forward(self, windows_NChw: Tensor) -> Tensor:
        """Logits `[N, h, w]` of windows that :meth:`windows` made."""
        x = F.silu(self.enter(windows_NChw.contiguous(memory_format=torch.channels_last)))
        for block in self.blocks:
            x = x + F.silu(block(x))
        logits: Tensor = self.judge(x)[:, 0]
        return logits

    def windows(
        self, history_GCPhw: Tensor, judged_GCPhw: Tensor, action_G: Tensor, shape: tuple[int, int]
    ) -> Tensor:
        """Every chunk behind the chunks before it in its sequence, `[S * (L - K + 1), C', h, w]`.

        Args:
            history_GCPhw: what comes before, the sequences chunk by chunk.
            judged_GCPhw: the last chunk of each window.
            action_G: int64, the action of every chunk.
            shape: S and L.

        Raises:
            ValueError: sequences shorter than a window.
        """
        if shape[1] < WINDOW:
            raise ValueError(f"sequences of {shape[1]} chunks: a window has {WINDOW} chunks")
        h, w = history_GCPhw.shape[-2:]
        planes_GAhw = F.one_hot(action_G, self.num_actions)[..., None, None].expand(-1, -1, h, w)
        before, judged = (
            torch.cat([chunks.flatten(1, 2), planes_GAhw], 1).unflatten(0, shape)
            for chunks in (history_GCPhw, judged_GCPhw)
        )
        count = shape[1] - WINDOW + 1
        parts = [before[:, k : k + count] for k in range(WINDOW - 1)]
        return torch.cat([*parts, judged[:, WINDOW - 1 :]], dim=2).flatten(0, 1)


def judged_places(weight_Ghw: Tensor, shape: tuple[int, int]) -> Tensor:
    """Of something given per chunk what belongs to the windows, `[N, h, w]`."""
    places: Tensor = weight_Ghw.unflatten(0, shape)[:, WINDOW - 1 :].flatten(0, 1)
    return places


def critic_loss(
    critic: Critic, real_NChw: Tensor, generated_RNChw: Tensor, weight_Nhw: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What the critic learns from, and the share of pairs that it gets right.

    Args:
        critic: the critic.
        real_NChw: windows of the real game.
        generated_RNChw: R generated windows beside each of them; no gradient goes there.
        weight_Nhw: weights of the places, 0 where nothing is to be learnt.
        generator: of the noise.
    """
    count = len(generated_RNChw)
    n = len(real_NChw)
    inputs = torch.cat([real_NChw, generated_RNChw.detach().flatten(0, 1)])
    shaken = inputs[: 2 * n] + _NOISE * torch.randn(inputs[: 2 * n].shape, generator=generator)
    logits, shaken_logits = critic(torch.cat([inputs, shaken])).split([len(inputs), 2 * n])
    real, generated = logits.split([n, count * n])
    ahead = real - generated.unflatten(0, (count, -1))
    total = weight_Nhw.sum().clamp_min(1e-6)
    loss = (F.softplus(-ahead) * weight_Nhw).sum() / (count * total)
    right = ((ahead > 0) * weight_Nhw).sum() / (count * total)
    return loss + _SMOOTHNESS * (logits[: 2 * n] - shaken_logits).square().mean(), right.detach()


def generator_loss(
    critic: Critic, real_NChw: Tensor, generated_RNChw: Tensor, weight_Nhw: Tensor
) -> Tensor:
    """What the model learns from: its windows should look the realer ones. The critic stays."""
    count = len(generated_RNChw)
    frozen = {name: parameter.detach() for name, parameter in critic.named_parameters()}
    windows = torch.cat([real_NChw, generated_RNChw.flatten(0, 1)])
    logits = functional_call(critic, frozen, (windows,))
    real, generated = logits.split([len(real_NChw), count * len(real_NChw)])
    ahead = generated.unflatten(0, (count, -1)) - real
    total = weight_Nhw.sum().clamp_min(1e-6)
    loss: Tensor = (F.softplus(-ahead) * weight_Nhw).sum() / (count * total)
    return loss
