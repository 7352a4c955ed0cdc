"""The adversarial critic: its windows, its two losses, and that it finds what fades."""

import pytest
import torch
from torch import Tensor

from magi_world.training.critic import (
    WINDOW,
    Critic,
    critic_loss,
    generator_loss,
    judged_places,
)

S, L, C, P, A, SIDE = 3, 6, 2, 1, 3, 4


def sequences(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Chunks and actions of S sequences."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(S * L, C, P, SIDE, SIDE, generator=generator)
    return x, torch.randint(A, (S * L,), generator=generator)


def test_a_window_is_the_judged_chunk_behind_those_before_it() -> None:
    history, action = sequences(0)
    judged, _ = sequences(1)
    windows = Critic(C * P, A).windows(history, judged, action, (S, L))
    count = L - WINDOW + 1
    assert windows.shape == (S * count, WINDOW * (C * P + A), SIDE, SIDE)
    parts = windows.view(S, count, WINDOW, C * P + A, SIDE, SIDE)
    before, last = history.view(S, L, C, SIDE, SIDE), judged.view(S, L, C, SIDE, SIDE)
    for i in range(count):
        for k in range(WINDOW - 1):
            assert torch.equal(parts[:, i, k, :C], before[:, i + k])
        assert torch.equal(parts[:, i, -1, :C], last[:, i + WINDOW - 1])
        told = parts[:, i, :, C:, 0, 0].argmax(-1)
        assert torch.equal(told, action.view(S, L)[:, i : i + WINDOW])
    weights = torch.arange(S * L).float()[:, None, None].expand(-1, SIDE, SIDE)
    places = judged_places(weights, (S, L))[:, 0, 0].view(S, count)
    assert torch.equal(places, torch.arange(S * L).view(S, L)[:, WINDOW - 1 :].float())


def test_the_losses_reach_their_own_side_only() -> None:
    critic = Critic(C * P, A)
    torch.nn.init.normal_(critic.judge.weight)
    (real, action), (other, _) = sequences(0), sequences(1)
    leaf = other.requires_grad_()
    windows = critic.windows(real, real, action, (S, L))
    generated = critic.windows(other, leaf, action, (S, L))[None]
    weight = torch.ones(len(windows), SIDE, SIDE)
    loss, right = critic_loss(critic, windows, generated, weight, torch.Generator().manual_seed(0))
    assert 0 <= right <= 1
    loss.backward()
    assert leaf.grad is None
    assert all(p.grad is not None for p in critic.parameters())
    critic.zero_grad()
    generator_loss(critic, windows, generated, weight).backward()
    assert leaf.grad is not None and leaf.grad.abs().sum() > 0
    assert all(p.grad is None for p in critic.parameters())


def test_places_without_weight_teach_nothing() -> None:
    critic = Critic(C * P, A)
    torch.nn.init.normal_(critic.judge.weight)
    (real, action), (other, _) = sequences(0), sequences(1)
    leaf = other.requires_grad_()
    windows = critic.windows(real, real, action, (S, L))
    generated = critic.windows(real, leaf, action, (S, L))[None]
    generator_loss(critic, windows, generated, torch.zeros(len(windows), SIDE, SIDE)).backward()
    assert leaf.grad is not None and leaf.grad.eq(0).all()


def test_a_critic_finds_a_light_that_fades_and_its_slope_brings_it_back() -> None:
    """Real sequences keep a bright place; generated ones have lost most of it."""
    torch.manual_seed(0)
    critic = Critic(C * P, A)
    optimizer = torch.optim.AdamW(critic.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    action = torch.zeros(S * L, dtype=torch.int64)
    weight = torch.ones(S * (L - WINDOW + 1), SIDE, SIDE)

    def pair() -> tuple[Tensor, Tensor]:
        real = 0.1 * torch.randn(S * L, C, P, SIDE, SIDE, generator=generator)
        faded = 0.1 * torch.randn(S * L, C, P, SIDE, SIDE, generator=generator)
        real[:, 0, 0, 1, 1] += 2.0
        faded[:, 0, 0, 1, 1] += 0.5
        return real, faded

    for _ in range(80):
        real, faded = pair()
        optimizer.zero_grad()
        windows = critic.windows(real, real, action, (S, L))
        generated = critic.windows(faded, faded, action, (S, L))[None]
        loss, right = critic_loss(critic, windows, generated, weight, generator)
        loss.backward()
        optimizer.step()
    assert right > 0.7
    real, faded = pair()
    leaf = faded.requires_grad_()
    windows = critic.windows(real, real, action, (S, L))
    generator_loss(
        critic, windows, critic.windows(faded, leaf, action, (S, L))[None], weight
    ).backward()
    assert leaf.grad is not None
    judged = leaf.grad.view(S, L, C, SIDE, SIDE)[:, WINDOW - 1 :, 0]
    brighter = -judged.mean((0, 1))
    assert brighter[1, 1] == brighter.max() and brighter[1, 1] > 0


def test_a_sequence_shorter_than_a_window_has_none() -> None:
    x = torch.zeros(2 * 2, C, P, SIDE, SIDE)
    with pytest.raises(ValueError, match="4 chunks"):
        Critic(C * P, A).windows(x, x, torch.zeros(4, dtype=torch.int64), (2, 2))
