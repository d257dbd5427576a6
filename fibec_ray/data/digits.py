"""The handwritten digits that come with scikit-learn: 1,797 images of 8 x 8. Needs no network.

Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, UCI, 1998), of which scikit-learn has the test part.
"""

from __future__ import annotations

import numpy as np

from fibec_ray.data.examples import Points
from fibec_ray.seeds import numpy_generator

NUM_TEST = 360
"""A fifth: the set comes without a split, so ours depends on the seed."""


def load(seed: int) -> tuple[Points, Points]:
    """(train, test), disjoint: images (1, 8, 8) with pixels in [0, 1]."""
    from sklearn.datasets import load_digits  # heavy, and device actors never load

    found = load_digits()
    images = (found.images[:, None] / 16).astype(np.float32)
    points = Points(images, found.target.astype(np.int64))
    rows = numpy_generator(seed, "digits").permutation(len(points))
    return points.take(np.sort(rows[NUM_TEST:])), points.take(np.sort(rows[:NUM_TEST]))
