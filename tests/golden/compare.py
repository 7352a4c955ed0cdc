"""The comparisons of the golden format: when does a computed value agree with a stored one?

Forms and JSON paths are described in `data/README.md`, "How to read a case". Every function returns
the reason why two values disagree, or None when they agree.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

# The keys of a rule that decide; any other key is information.
FORMS: tuple[frozenset[str], ...] = (
    frozenset({"atol"}),
    frozenset({"atol", "rtol"}),
    frozenset({"relative_l2"}),
    frozenset({"exact"}),
    frozenset({"uint8_max_difference", "fraction"}),
)
_DECIDING = frozenset().union(*FORMS)

Rule = Mapping[str, Any]


def mismatch(got: Tensor, reference: Tensor, rule: Rule) -> str | None:
    """Say why ``got`` disagrees with ``reference`` under one rule of ``tolerance``.

    Shapes must agree, NaN disagrees even with NaN, and the comparison is done in float64.

    Raises:
        ValueError: a rule that is none of the forms.
    """
    form = frozenset(rule) & _DECIDING
    if form not in FORMS:
        raise ValueError(f"rule {dict(rule)} is none of the forms {[sorted(f) for f in FORMS]}")
    if got.shape != reference.shape:
        return f"shape {tuple(got.shape)}, reference {tuple(reference.shape)}"
    if "uint8_max_difference" in form and got.dtype != torch.uint8:
        return f"dtype {got.dtype}, reference uint8"
    got64, reference64 = got.double(), reference.double()
    if got64.isnan().any():
        return f"{int(got64.isnan().sum())} of {got.numel()} values are NaN"
    difference = (got64 - reference64).abs()
    if "exact" in form:
        # equality, not a difference of 0: two equal infinities agree
        return _share(got64 == reference64, "equal", difference)
    if "relative_l2" in form:
        distance = torch.linalg.vector_norm(got64 - reference64)
        bound = rule["relative_l2"] * torch.linalg.vector_norm(reference64)
        if distance <= bound:
            return None
        return f"relative L2 {float(distance / bound) * rule['relative_l2']:.3g} > {dict(rule)}"
    if "uint8_max_difference" in form:
        wrong = _share(difference <= rule["uint8_max_difference"], f"within {rule}", difference)
        share = float((difference != 0).double().mean()) if difference.numel() else 0.0
        return wrong or (None if share <= rule["fraction"] else f"{share:.4%} of the values differ")
    bound = rule["atol"] + rule.get("rtol", 0.0) * reference64.abs()
    return _share(difference <= bound, f"within {dict(rule)}", difference)


def value_mismatch(got: Any, reference: Any, rule: Rule) -> str | None:
    """Say why one JSON value disagrees with the reference under one rule of ``expected``."""
    if "exact" in rule:
        return None if _same(got, reference) else f"{got!r}, reference {reference!r}"
    if got is None or reference is None:
        return None if got is reference else f"{got!r}, reference {reference!r}"
    try:
        got_tensor = torch.tensor(got, dtype=torch.float64)
    except (TypeError, ValueError):
        return f"{got!r} is not numeric, reference {reference!r}"
    return mismatch(got_tensor, torch.tensor(reference, dtype=torch.float64), rule)


def select(document: Any, path: str) -> dict[str, Any]:
    """Return the values that a path of ``expected`` names, by their concrete paths.

    `a[*].b` is field b of every element of list a, `a.*.b` of every value of object a. A null on
    the way ends there: its concrete path holds None.

    Raises:
        KeyError: a field that the document lacks.
    """
    return dict(_select(document, re.findall(r"\[\*\]|[^.\[\]]+", path), ""))


def _select(node: Any, parts: list[str], at: str) -> Iterator[tuple[str, Any]]:
    if not parts or node is None:
        yield at, node
        return
    part, rest = parts[0], parts[1:]
    if part == "[*]":
        if not isinstance(node, list | tuple):
            raise KeyError(f"{at} is no list")
        # the length takes part in the comparison: a list that stops early has fewer paths
        for index, element in enumerate(node):
            yield from _select(element, rest, f"{at}[{index}]")
    elif not isinstance(node, Mapping):
        raise KeyError(f"{at} is no object")
    elif part == "*":
        for key, element in node.items():
            yield from _select(element, rest, f"{at}.{key}")
    elif part not in node:
        raise KeyError(f"{at}.{part} is absent")
    else:
        yield from _select(node[part], rest, f"{at}.{part}".lstrip("."))


def document_mismatches(
    got: Any, reference: Any, expected: Mapping[str, Rule]
) -> tuple[list[str], int]:
    """Compare all values that ``expected`` names.

    Returns:
        The disagreements, and how many values were compared.
    """
    wrong: list[str] = []
    compared = 0
    for path, rule in expected.items():
        references = select(reference, path)
        try:
            values = select(got, path)
        except KeyError as error:
            wrong.append(f"{path}: not computed: {error.args[0]}")
            continue
        if values.keys() != references.keys():
            differing = sorted(values.keys() ^ references.keys())
            wrong.append(f"{path}: only on one side: {differing[:5]}")
        for at in values.keys() & references.keys():
            compared += 1
            reason = value_mismatch(values[at], references[at], rule)
            if reason is not None:
                wrong.append(f"{at}: {reason}")
    return wrong, compared


def _same(got: Any, reference: Any) -> bool:
    """Equality of JSON values; tuples are lists, and True is not 1."""
    if isinstance(reference, Mapping):
        return (
            isinstance(got, Mapping)
            and got.keys() == reference.keys()
            and all(_same(got[key], reference[key]) for key in reference)
        )
    if isinstance(reference, list | tuple):
        return (
            isinstance(got, list | tuple)
            and len(got) == len(reference)
            and all(map(_same, got, reference))
        )
    return isinstance(got, bool) == isinstance(reference, bool) and bool(got == reference)


def _share(agrees: Tensor, what: str, difference: Tensor) -> str | None:
    if agrees.all():
        return None
    worst = float(difference.nan_to_num(torch.inf).max())
    return (
        f"{int((~agrees).sum())} of {agrees.numel()} values are not {what}; "
        f"largest difference {worst:.3g}"
    )
