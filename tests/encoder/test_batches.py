"""Which pixels a step's rays are drawn from."""

import numpy as np

from encoder.batches import silhouette_pixels


def test_silhouettes_are_the_outermost_covered_pixels_of_each_view() -> None:
    covered = np.zeros((2, 8, 8), dtype=bool)
    covered[0, 2:6, 2:6] = True  # its inner 2 x 2 has covered neighbours alone
    covered[1, :, 3] = True  # one pixel wide
    found = silhouette_pixels(covered)
    views, rows, columns = np.unravel_index(found, covered.shape)
    assert (views == 0).sum() == 12 and not (
        (views == 0) & (np.abs(rows - 3.5) < 1) & (np.abs(columns - 3.5) < 1)
    ).any()
    assert (views == 1).sum() == 8
    assert covered.reshape(-1)[found].all()


def test_a_picture_s_border_is_a_silhouette() -> None:
    assert len(silhouette_pixels(np.ones((1, 5, 5), dtype=bool))) == 16
    assert len(silhouette_pixels(np.zeros((1, 5, 5), dtype=bool))) == 0
