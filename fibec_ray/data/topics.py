"""Clusters texts into topics, for partitions that deal rows by topic.

TF-IDF vectors of words, a truncated SVD (latent semantic analysis), scaled to length 1, then k-means; all from
scikit-learn. N texts.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from fibec_ray.data.dealing import Ints
from fibec_ray.errors import ConfigError

NUM_DIMENSIONS = 50
"""of the vectors that are clustered"""
NUM_STARTS = 3
"""k-means runs from this many random starts and keeps the tightest clusters"""
MOST_ROWS = 20_000
"""Topics are fitted on at most this many training rows, so that large sets take seconds and not minutes."""
MOST_WORDS = 50_000
"""The most frequent words are used."""

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
"""Letters of scripts without spaces between words (Thai, Lao, Burmese, Khmer, Japanese, Chinese)"""
_WORD = rf"(?u)[{_UNSPACED}]|[^\W{_UNSPACED}]+"


def topics_of(
    train: Sequence[str], test: Sequence[str], num_topics: int, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """The topic of each training text (N,) and of each test text, from 0 to num_topics - 1.

    Everything is fitted on training texts. Topics do not depend on the test texts, the process, or the number of
    threads. Raises ConfigError if the training texts form fewer groups than topics.
    """
    from sklearn.cluster import KMeans  # heavy, and device actors never need it
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer
    from threadpoolctl import threadpool_limits

    state = np.random.RandomState(rng.integers(2**32, size=8, dtype=np.uint32))
    rows = np.sort(rng.permutation(len(train))[:MOST_ROWS])
    fitted = [train[row] for row in rows.tolist()]
    words = TfidfVectorizer(token_pattern=_WORD, sublinear_tf=True, max_features=MOST_WORDS)
    try:
        counts = words.fit_transform(fitted)
    except ValueError as error:  # no text has a word
        raise ConfigError("partition.kind: topics needs texts with words, and no training text has one") from error
    if len(set(fitted)) < num_topics:
        raise _too_few(num_topics, len(set(fitted)))
    reduce = [TruncatedSVD(NUM_DIMENSIONS, random_state=state)] if counts.shape[1] > NUM_DIMENSIONS else []
    clusters = make_pipeline(*reduce, Normalizer(), KMeans(num_topics, n_init=NUM_STARTS, random_state=state))
    # Sums in several threads are rounded differently, and a text between two centres can change sides.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of clusters that stay empty: refused below
        clusters.fit(counts)
        found = [
            clusters.predict(words.transform(texts)).astype(np.int64) if len(texts) else np.zeros(0, np.int64)
            for texts in (train, test)
        ]
    used = len(np.unique(found[0]))
    if used < num_topics:
        raise _too_few(num_topics, used)
    return found[0], found[1]


def _too_few(num_topics: int, groups: int) -> ConfigError:
    remedy = f"set num_topics={groups} or less" if groups > 1 else "choose another partition.kind"
    return ConfigError(
        f"partition.num_topics: {num_topics} topics, but the training texts form only {groups} different groups; "
        f"{remedy}"
    )
