"""The page's pipeline is the one of the tests below it."""

from tests.sampling.conftest import pipeline, runs

__all__ = ["pipeline", "runs"]
