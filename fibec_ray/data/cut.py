"""Which tokens of a sample stay when it is cut to a length."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def kept_tokens(texts: NDArray[np.uint8], max_length: int) -> NDArray[np.int64]:
    """Positions of the tokens that stay: the others go one by one from the end of the text that is longest by then.

    texts: (S,) the number of each token's text, 0 for one that always stays. Of texts alike the first is cut first. One
    token of each text stays, so that the result may be longer than max_length.
    """
    left = np.bincount(texts)[1:].tolist()  # tokens of text 1, 2 ...
    for _ in range(len(texts) - max_length):
        most = max(left, default=0)
        if most <= 1:
            break
        left[left.index(most)] -= 1
    stays = texts == 0
    for number, count in enumerate(left, start=1):
        stays[np.flatnonzero(texts == number)[:count]] = True
    return np.flatnonzero(stays)
