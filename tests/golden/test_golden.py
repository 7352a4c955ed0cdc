"""Parity with the published model: one test a golden case, its id the case's name."""

import pytest
import torch

from tests.golden.cases import Case
from tests.golden.compare import document_mismatches, mismatch
from tests.golden.drivers import DRIVERS


@torch.no_grad()
def test_case(case: Case) -> None:
    computed = DRIVERS[case.kind](case)
    references = case.references()
    tolerance = case.tolerance

    wrong = [f"{name}: no rule" for name in references.keys() - tolerance.keys()]
    for name, rule in tolerance.items():
        if name not in computed.tensors:
            wrong.append(f"{name}: not computed")
        elif (difference := mismatch(computed.tensors[name], references[name], rule)) is not None:
            wrong.append(f"{name}: {difference}")
    values_wrong, values_compared = document_mismatches(computed.values, case.meta, case.expected)
    wrong += values_wrong

    assert not wrong, "\n".join(wrong)
    if case.expected:
        assert values_compared, "`expected` named no value"


# a GPU runs them as it is asked to; elsewhere the interpreter takes its time
@(pytest.mark.gpu if torch.cuda.is_available() else pytest.mark.slow)
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
@pytest.mark.usefixtures("our_triton_kernels")
def test_case_by_our_triton_kernels(case: Case) -> None:
    test_case(case)
