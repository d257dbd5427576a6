"""Topics: clusters of texts, fitted on training texts, the same in every process and with any number of threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from fibec_ray.data import exercises, topics
from fibec_ray.data.dealing import Ints
from fibec_ray.data.exercises import ExerciseSettings
from fibec_ray.data.topics import topics_of
from fibec_ray.errors import ConfigError
from fibec_ray.seeds import numpy_generator

REAL = Path(__file__).parents[2].parent / "shared" / "data"
KNOWN = exercises.generate(300, 0, "train", ExerciseSettings())


def clusters(train: list[str], test: list[str], num_topics: int, seed: int = 0) -> tuple[Ints, Ints]:
    return topics_of(train, test, num_topics, numpy_generator(seed, "test"))


def purity(classes: Ints, found: Ints) -> float:
    """Share of rows whose class is the most frequent one of their topic."""
    return sum(np.bincount(classes[found == topic]).max() for topic in np.unique(found)) / len(classes)


def test_topics_match_known_categories() -> None:
    found, _ = clusters(KNOWN.texts(), [], 12)
    assert purity(KNOWN.labels, found) > 0.75 > 0.2 > np.bincount(KNOWN.labels).max() / 300


def test_topics_depend_on_the_seed_and_not_on_the_test_texts() -> None:
    texts = KNOWN.texts()
    one, same, other = clusters(texts, [], 6), clusters(texts, texts[:50], 6), clusters(texts, [], 6, seed=1)
    assert (one[0] == same[0]).all() and (one[0] != other[0]).any()
    assert (same[1] == same[0][:50]).all()  # the same text has the same topic in both sets


def test_the_number_of_threads_changes_no_topic() -> None:
    texts, found = [f"{text} {row}" for row, text in enumerate(KNOWN.texts() * 4)], []
    for threads in (1, 3):
        with threadpool_limits(threads):
            found.append(clusters(texts, texts[:10], 8))
    assert (found[0][0] == found[1][0]).all() and (found[0][1] == found[1][1]).all()


def test_rows_beyond_the_limit_get_the_nearest_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics, "MOST_ROWS", 100)
    found, _ = clusters(KNOWN.texts(), [], 12)
    assert len(found) == 300 and purity(KNOWN.labels, found) > 0.6


def test_every_letter_of_a_script_without_spaces_is_a_word() -> None:
    weather, food = ["今天下雨了", "明天会下雪", "昨天下雨", "后天下雪"], ["我喜歡麵包", "我喜歡米飯", "他喜歡麵條"]
    found, test = clusters(weather * 3 + food * 3, ["下雨下雪", "喜歡麵包"], 2)
    assert len(set(found[:12])) == 1 and len(set(found[12:])) == 1 and test.tolist() == [found[0], found[12]]


def test_texts_without_words_are_refused() -> None:
    with pytest.raises(ConfigError, match="partition.kind: topics needs texts with words"):
        clusters(["", "...", "?!"], [], 2)


def test_equal_texts_are_one_group() -> None:
    with pytest.raises(ConfigError, match="only 1 different groups; choose another partition.kind"):
        clusters(["same text"] * 10, [], 2)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=25), st.lists(st.text(max_size=12)), st.integers(2, 6))
def test_any_texts_are_clustered_or_refused(train: list[str], test: list[str], num_topics: int) -> None:
    try:
        found, tested = clusters(train, test, num_topics)
    except ConfigError:
        return
    assert set(found.tolist()) == set(range(num_topics)) and set(tested.tolist()) <= set(range(num_topics))
    assert len(found) == len(train) and len(tested) == len(test) and found.dtype == tested.dtype == np.int64
    topic = dict(zip(train, found.tolist(), strict=True))
    assert all(topic[text] == each for text, each in zip(train, found.tolist(), strict=True))


@pytest.mark.skipif(not (REAL / "trec" / "train.parquet").is_file(), reason="needs ../shared/data/trec")
def test_topics_of_trec_say_something_about_its_question_types() -> None:
    table = pyarrow.parquet.read_table(REAL / "trec" / "train.parquet").slice(0, 1500)
    labels = np.array(table["label"].to_pylist())
    found, _ = clusters(table["sentence"].to_pylist(), [], 10)
    assert purity(labels, found) > 0.4 > 0.3 > np.bincount(labels).max() / 1500
