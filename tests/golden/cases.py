"""The golden cases of a folder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from tests.golden.compare import Rule

DATA = Path(__file__).parent / "data"
"""the public set"""


@dataclass(frozen=True)
class Case:
    """One entry of `index.json`."""

    folder: Path
    entry: Mapping[str, Any]

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        """Name of the case, unique in its folder."""
        return str(self.entry["name"])

    @property
    def kind(self) -> str:
        """Kind of the case, which names its driver."""
        return str(self.entry["kind"])

    @property
    def meta(self) -> dict[str, Any]:
        """The JSON of the case: arguments, `tolerance`, `expected`."""
        return _read_json(self.folder / self.entry["meta"])

    @property
    def tolerance(self) -> Mapping[str, Rule]:
        """Tensor name -> rule, for every tensor that is not an input."""
        rules: Mapping[str, Rule] = self.meta["tolerance"]
        return rules

    @property
    def expected(self) -> Mapping[str, Rule]:
        """JSON path -> rule; entries that need an absent file are left out."""
        rules: Mapping[str, Rule] = self.meta["expected"]
        return {
            path: rule
            for path, rule in rules.items()
            if "requires" not in rule or (self.folder / rule["requires"]).is_file()
        }

    def stored(self) -> dict[str, Tensor]:
        """Return all tensors of the case's file, floating ones up-cast to float32."""
        file = self.entry["file"]
        tensors = load_file(self.folder / file) if file is not None else {}
        return {name: x.float() if x.is_floating_point() else x for name, x in tensors.items()}

    def inputs(self) -> dict[str, Tensor]:
        """Return the tensors that the computation starts from."""
        return self._of_role("input")

    def references(self) -> dict[str, Tensor]:
        """Return the tensors that the computation must reproduce."""
        return self._of_role("output", "intermediate")

    def _of_role(self, *roles: str) -> dict[str, Tensor]:
        names = {t["name"] for t in self.entry["tensors"] if t.get("role") in roles}
        return {name: tensor for name, tensor in self.stored().items() if name in names}


@dataclass(frozen=True)
class Computed:
    """What a driver computed: tensors by name, and values laid out as in the case's JSON."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


def load_cases(folder: Path) -> list[Case]:
    """Return the cases of a golden folder in the order of its index.

    Raises:
        FileNotFoundError: the folder has no `index.json`.
        ValueError: a format version or a number of cases other than stated.
    """
    index = _read_json(folder / "index.json")
    if index["format_version"] != 2:
        raise ValueError(f"{folder}: format_version {index['format_version']}, this suite reads 2")
    cases = [Case(folder, entry) for entry in index["cases"]]
    if len(cases) != index["number_of_cases"]:
        raise ValueError(f"{folder}: {len(cases)} cases, stated are {index['number_of_cases']}")
    return cases


@cache
def _read_json(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document
