"""The outcome heads."""

import pytest
import torch

from magi_world.config import OutcomeConfig
from magi_world.errors import ConfigError
from magi_world.models.outcome import OutcomeHead


def build(**keywords: object) -> OutcomeHead:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return OutcomeHead(OutcomeConfig(**keywords), 24).eval().requires_grad_(False)  # type: ignore[arg-type]


@pytest.mark.parametrize("signals", [(), ("damage",), ("damage", "ammo")])
def test_one_row_a_chunk(signals: tuple[str, ...]) -> None:
    head = build(hidden_size=64, num_queries=3, signals=signals)
    hidden = torch.randn(5, 16, 24, generator=torch.Generator().manual_seed(1))
    outcome = head(hidden)
    assert outcome.reward.shape == outcome.termination_logit.shape == (5,)
    assert outcome.signals.shape == (5, len(signals))
    for row in range(5):
        alone = head(hidden[row : row + 1])
        torch.testing.assert_close(alone.reward, outcome.reward[row : row + 1])
        torch.testing.assert_close(alone.signals, outcome.signals[row : row + 1])


def test_half_precision_hidden_states_are_widened() -> None:
    head = build(hidden_size=32)
    hidden = torch.randn(2, 16, 24, generator=torch.Generator().manual_seed(1)).bfloat16()
    outcome = head(hidden)
    assert outcome.reward.dtype == torch.float32
    torch.testing.assert_close(outcome.reward, head(hidden.float()).reward)


@pytest.mark.parametrize("size", [100, 0, -32])
def test_a_width_that_heads_cannot_share_is_refused(size: int) -> None:
    with pytest.raises(ConfigError, match=f"hidden_size {size}"):
        OutcomeConfig(hidden_size=size)


def test_heads_without_queries_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_queries 0"):
        OutcomeConfig(num_queries=0)
