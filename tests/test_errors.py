"""The family of errors: one base, built-in parents, and a reason in every docstring."""

import inspect

import pytest

from magi_world import errors

FAMILY = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and value is not errors.MagiWorldError
]


@pytest.mark.parametrize("error", FAMILY, ids=lambda error: error.__name__)
def test_an_error_has_the_base_and_a_builtin_parent(error: type[Exception]) -> None:
    assert issubclass(error, errors.MagiWorldError)
    # A user's wrong value, a wrong moment or an absent package: code that does not know the
    # package can catch each by the name that Python has for it.
    assert issubclass(error, ValueError | RuntimeError | ImportError)
    assert error.__doc__


def test_a_missing_package_is_named_with_its_command() -> None:
    error = errors.missing_package("vizdoom", "doom", "playing the real game")
    assert isinstance(error, errors.MissingPackage)
    assert "playing the real game" in str(error)
    assert "pip install 'magi-world[doom]'" in str(error)
