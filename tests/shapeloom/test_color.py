"""sRGB against its standard's values."""

import numpy as np
import pytest

from shapeloom.color import linear_to_srgb, srgb_to_linear


def test_srgb_encoding_inverts_decoding():
    values = np.linspace(0, 1, 1001)
    np.testing.assert_allclose(
        linear_to_srgb(srgb_to_linear(values)), values, atol=1e-7
    )  # standard's own joint


@pytest.mark.parametrize(("srgb", "linear"), [(0.0, 0.0), (0.5, 0.21404114), (1.0, 1.0), (0.04, 0.00309598)])
def test_srgb_decoding_at_known_values(srgb, linear):
    assert srgb_to_linear(np.array(srgb)) == pytest.approx(linear, abs=1e-7)
