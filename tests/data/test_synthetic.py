"""The embedded task: deterministic, balanced, distinct, and as hard as its true difficulties say."""

import numpy as np
import pytest
from pydantic import ValidationError

from fibec_ray.data import synthetic
from fibec_ray.data.grammar import TIMES, TOPICS
from fibec_ray.data.synthetic import Features, SyntheticSettings, draw_features, generate, write
from fibec_ray.errors import DataError

DEFAULT = SyntheticSettings()


def test_same_seed_same_rows() -> None:
    one, two = generate(50, 3, "train", DEFAULT), generate(50, 3, "train", DEFAULT)
    assert (
        one.texts_a == two.texts_a
        and (one.labels == two.labels).all()
        and (one.true_difficulty == two.true_difficulty).all()
    )


def test_other_seed_other_rows() -> None:
    assert generate(50, 3, "train", DEFAULT).texts_a != generate(50, 4, "train", DEFAULT).texts_a


def test_no_message_is_repeated_within_or_across_splits() -> None:
    train, test = generate(3000, 0, "train", DEFAULT), generate(1000, 0, "test", DEFAULT)
    assert len(set(train.texts_a) | set(test.texts_a)) == 4000


def test_every_ask_has_exactly_one_time_so_that_splits_cannot_meet() -> None:
    assert all(ask.count("{time}") == 1 for topic in TOPICS.values() for ask in topic.asks)
    others = [text for topic in TOPICS.values() for text in (*topic.remarks, *topic.subjects)]
    assert not any("{time}" in text for text in others)
    assert len(set(TIMES)) == len(TIMES)


def test_majority_class_scores_one_in_num_classes() -> None:
    counts = np.bincount(generate(400, 0, "test", DEFAULT).labels)
    assert counts.tolist() == [67, 67, 67, 67, 66, 66]  # 400 = 4 * 67 + 2 * 66


def test_fewer_classes_are_the_first_ones() -> None:
    assert set(generate(30, 0, "train", SyntheticSettings(num_classes=2)).labels.tolist()) == {0, 1}


def test_wrong_labels_are_the_stated_fraction_and_grade_one() -> None:
    noisy = generate(200, 0, "train", SyntheticSettings(label_noise=0.1))
    clean = generate(200, 0, "train", SyntheticSettings(label_noise=0))
    assert noisy.texts_a == clean.texts_a and noisy.true_difficulty is not None and clean.true_difficulty is not None
    wrong = noisy.labels != clean.labels
    assert wrong.sum() == 20 and (noisy.true_difficulty[wrong] == 1).all()
    assert (noisy.true_difficulty[~wrong] == clean.true_difficulty[~wrong]).all() and clean.true_difficulty.max() < 1


def test_test_labels_are_right_unless_asked_for() -> None:
    same = [generate(100, 0, "test", SyntheticSettings(label_noise=x)).labels for x in (0.0, 0.5)]
    assert (same[0] == same[1]).all()
    assert (generate(100, 0, "test", SyntheticSettings(test_label_noise=0.2)).labels != same[0]).sum() == 20


def test_grade_rises_with_each_factor() -> None:
    easy = Features(0, negation=False, contrast=False)
    assert easy.grade == 0
    assert Features(1, negation=False, contrast=False).grade == pytest.approx(0.15)
    assert Features(0, negation=True, contrast=False).grade == pytest.approx(0.3)
    assert Features(0, negation=False, contrast=True).grade == pytest.approx(0.3)
    assert Features(2, negation=True, contrast=True).grade == pytest.approx(0.9)


def test_each_factor_is_in_the_text() -> None:
    rng = np.random.default_rng(0)

    def mean_words(features: Features) -> float:
        return float(np.mean([len(write(0, features, rng, TIMES, 6).split()) for _ in range(100)]))

    plain = mean_words(Features(0, negation=False, contrast=False))
    assert mean_words(Features(3, negation=False, contrast=False)) > plain + 15
    assert mean_words(Features(0, negation=True, contrast=False)) > plain + 3
    assert mean_words(Features(0, negation=False, contrast=True)) > plain + 3


def test_hard_fraction_bounds() -> None:
    rng = np.random.default_rng(0)
    assert not any(f.negation or f.contrast for f in (draw_features(rng, 0.0) for _ in range(100)))
    assert all(f.negation or f.contrast for f in (draw_features(rng, 1.0) for _ in range(100)))


def test_messages_read_as_sentences() -> None:
    for text in generate(200, 0, "train", DEFAULT).texts_a:
        assert text[0].isupper() and text[-1] in ".?" and "{" not in text and "  " not in text


def test_exhausted_grammar_ends_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "OPENERS", ("",))
    monkeypatch.setattr(synthetic, "PADDING", ())
    monkeypatch.setattr(synthetic, "MAX_PADDING", 0)
    monkeypatch.setitem(TOPICS, "weather", TOPICS["weather"]._replace(asks=("Rain {time}?",)))
    with pytest.raises(DataError, match="lower data.synthetic.num_test"):
        generate(30, 0, "test", SyntheticSettings(num_classes=2, hard_fraction=0))  # 8 test times, 15 rows of weather


@pytest.mark.parametrize(
    "bad", [{"num_classes": 1}, {"num_classes": 7}, {"label_noise": 1.0}, {"num_train": 0}, {"hard_fraction": 1.5}]
)
def test_setting_out_of_range_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        SyntheticSettings.model_validate(bad)
