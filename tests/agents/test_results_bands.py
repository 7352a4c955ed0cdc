"""Where episodes end, band by band of returns."""

import json

import pytest
from rich.console import Console

from magi_world.agents.results_bands import FEWEST, format_bands, make_bands
from magi_world.errors import AgentError
from tests.agents.result_rows import a_row, blind


def test_of_those_who_come_so_far() -> None:
    sweep = blind("best sweep", "sweep", returns=[10.0] * 10 + [160.0] * 5 + [330.0] * 25)
    lines = make_bands([a_row(returns=[0.0] * 12), sweep, a_row(seeds="validation")], 160)
    assert [line["label"] for line in lines] == ["best sweep", "PPO in the dream"]
    first, second = lines
    assert first["edges"][:3] == [0, 160, 320]
    assert first["reached"][:4] == [40, 30, 25, 0]
    assert first["ended"][:4] == [10, 5, 25, 0]
    assert first["share"][:4] == [10 / 40, 5 / 30, 1.0, None]
    assert second["share"][:2] == [1.0, None]
    json.dumps(lines, allow_nan=False)


def test_trainings_of_one_line_count_together() -> None:
    rows = [a_row(seed=seed, returns=[50.0 * seed] * FEWEST) for seed in (1, 2, 3)]
    (line,) = make_bands(rows, 100)
    assert line["reached"][:3] == [30, 20, 0]


def test_bands_are_of_the_seeds_asked_for() -> None:
    rows = [a_row(returns=[50.0] * FEWEST), a_row(seeds="validation", returns=[150.0] * FEWEST)]
    (line,) = make_bands(rows, 100, seeds="validation")
    assert line["ended"][:2] == [0, FEWEST]


def test_few_episodes_say_nothing() -> None:
    (line,) = make_bands([a_row(returns=[500.0] * (FEWEST - 1))], 100)
    assert line["reached"][0] == FEWEST - 1 and set(line["share"]) == {None}


def test_lost_games_count_too() -> None:
    (line,) = make_bands([a_row(returns=[-21.0] * 10 + [-3.0] * 10)], 5)
    assert line["edges"][0] == -25 and line["share"][0] == 0.5


@pytest.mark.parametrize("width", [0.0, -1.0, float("nan")])
def test_widths_that_are_none(width: float) -> None:
    with pytest.raises(AgentError, match="above 0"):
        make_bands([a_row()], width)


def test_table_for_people() -> None:
    console = Console(width=120)
    rows = [a_row(returns=[10.0] * 5 + [200.0] * 15), a_row(policy="greedy", returns=[1.0] * 20)]
    with console.capture() as captured:
        console.print(format_bands(make_bands(rows, 160)))
    text = captured.get()
    assert "160 to 320" in text and "320 to 480" not in text
    assert "25%" in text and "100%" in text
