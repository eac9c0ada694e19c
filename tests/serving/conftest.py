"""The page's pipeline is the one of the tests below it."""

from tests.sampling.conftest import pipeline, runs
from tests.sampling.refine.conftest import balls

__all__ = ["balls", "pipeline", "runs"]
