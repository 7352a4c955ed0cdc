"""Values from outside take the kind that a setting has, or are refused."""

from typing import Any, Literal

import pytest

from magi_world.fitting import Unfit, fitting


@pytest.mark.parametrize(
    ("kind", "value", "result"),
    [
        (int, 3, 3),
        (float, 3, 3.0),
        (int | None, None, None),
        (float | None, 2, 2.0),
        (tuple[int, int], [4, 8], (4, 8)),
        (tuple[int, ...], [1, 2, 3], (1, 2, 3)),
        (dict[str, float], {"damage": -1}, {"damage": -1.0}),
        (Literal["any", "opening"], "any", "any"),
        (Literal["any"] | None, None, None),
    ],
)
def test_what_fits(kind: Any, value: Any, result: Any) -> None:
    found = fitting(kind, value)
    assert found == result and type(found) is type(result)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, 2.5),
        (int, True),
        (int | None, 2.5),
        (float | None, "abc"),
        (tuple[int, int], [1, "a"]),
        (tuple[int, int], [1]),
        (dict[str, float], {"damage": "much"}),
        (dict[str, float], 5),
        (Literal["any", "opening"], "now"),
    ],
)
def test_what_does_not(kind: Any, value: Any) -> None:
    with pytest.raises(Unfit, match="is not of kind"):
        fitting(kind, value)
