"""Annotations are checked while tests run: shapes, sizes of one name in one call, and plain types."""

from dataclasses import dataclass

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from shapeloom.diffusion.steps import karras_sigmas
from shapeloom.muon import orthogonalize
from tests.shape_checks import checked


@checked()
def repeat(x: Float[Tensor, "n 3"], weights: Float[Tensor, " n"], times: int) -> Float[Tensor, "n 3"]:
    return (weights[:, None] * x).repeat(times, 1)


@checked()
def name_of(number: int, broken: bool = False) -> str:
    return 1 if broken else str(number)


@checked()
@dataclass
class Points:
    xyz: Float[Tensor, "n 3"]
    weights: Float[Tensor, " n"]


def test_sizes_agree_among_arguments_and_with_the_result() -> None:
    x, weights = torch.ones(4, 3), torch.ones(4)
    assert repeat(x, weights, 1).shape == (4, 3)
    for wrong in ((x[:, :2], weights, 1), (x, weights[:3], 1), (x.int(), weights, 1), (x, weights, 1.0)):
        with pytest.raises(TypeCheckError, match="parameters"):
            repeat(*wrong)
    with pytest.raises(TypeCheckError, match="return value"):
        repeat(x, weights, 2)
    Points(x, weights)
    with pytest.raises(TypeCheckError, match="parameters"):
        Points(x, weights[:3])


def test_types_are_checked_where_there_is_no_shape() -> None:
    assert name_of(3) == "3"
    with pytest.raises(BeartypeCallHintViolation):
        name_of("3")
    with pytest.raises(BeartypeCallHintViolation):
        name_of(3, broken=True)


def test_the_project_s_own_functions_are_checked() -> None:
    with pytest.raises(TypeCheckError):
        orthogonalize(torch.zeros(3, 3))
    with pytest.raises((TypeCheckError, BeartypeCallHintViolation)):
        karras_sigmas("12")
