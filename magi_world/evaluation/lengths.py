"""Episode lengths, dreamed beside real, and the choice of the blind sweep's period."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from magi_world.evaluation.metrics import Floats, difference_interval, mean_and_std, ratio_interval

SWEEP_PERIODS = (20, 24, 28, 32, 36, 40)
"""chunks of half a sweep that are tried"""
SWEEP_SEED = 610_000
"""first of the real seeds on which the period is chosen; nothing else uses them"""

Play = Callable[[int, int, int], Sequence[float]]
"""plays real episodes of the sweep, given (period, first seed, episodes), episode i with the seed
first + i; returns the tics survived in each"""
Lengths = Callable[[], Sequence[float] | Floats]
"""plays episodes and returns the length of each in tics"""


def measure_lengths(
    players: Mapping[str, tuple[Lengths, Lengths]],
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Compare lengths in tics, policy by policy: name to (play in the dream, play in reality).

    A world whose deaths come too often or too rarely shows it here. `ratio` is the dream's mean
    over the real one, `ratio_interval` its 95 % bootstrap interval over the episodes of both sides,
    and `difference_interval` that of the dream's mean minus the real one.
    """
    result: dict[str, Any] = {}
    for name, (play_dream, play_real) in players.items():
        dream, real = play_dream(), play_real()
        numbers = {"dream": mean_and_std(dream), "real": mean_and_std(real)}
        real_mean = numbers["real"]["mean"]
        result[name] = {
            **numbers,
            "ratio": numbers["dream"]["mean"] / real_mean if real_mean else None,
            "ratio_interval": list(ratio_interval(dream, real)),
            "difference_interval": list(difference_interval(dream, real)),
        }
        means = " and ".join(f"{row['mean']:.0f} ({place})" for place, row in numbers.items())
        say(f"lengths of {name}: {means}, tics")
    return result


def choose_sweep(
    play: Play,
    *,
    episodes: int = 100,
    periods: Sequence[int] = SWEEP_PERIODS,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[int, dict[str, dict[str, float | int]]]:
    """Play every period on the same real seeds; returns the best one and all means by period."""
    sweeps = {}
    for period in periods:
        sweeps[str(period)] = mean_and_std(play(period, SWEEP_SEED, episodes))
        say(f"sweep {period}: {sweeps[str(period)]['mean']:.0f} tics over {episodes} episodes")
    best = max(periods, key=lambda period: sweeps[str(period)]["mean"])
    return best, sweeps
