"""E26: shards are disjoint, cover the set, follow the seed, and mean what their settings say."""

from dataclasses import replace
from typing import Any, get_type_hints

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from fibec_ray.config.experiment import Experiment
from fibec_ray.data import dealing
from fibec_ray.data.dealing import Draws, Split, draw
from fibec_ray.data.examples import Examples, Instructions, Points, Rows
from fibec_ray.data.heterogeneity import heterogeneity, majorities
from fibec_ray.data.partition import (
    PARTITIONS,
    ByColumn,
    DirichletLabel,
    DirichletQuantity,
    Iid,
    Pathological,
    Shards,
    Topics,
)
from fibec_ray.data.partition_base import Partition
from fibec_ray.errors import ConfigError

RULES = [
    DirichletLabel(),
    DirichletQuantity(alpha=5.0),
    Iid(),
    Pathological(),
    Shards(),
    ByColumn(column="user"),
    Topics(num_topics=5),
]
TRAIN, TEST = np.arange(1200) % 4, np.arange(400) % 4
USERS = [[f"user {row % 170}" for row in range(count)] for count in (1200, 400)]
SUBJECTS = ("rain and snow", "bread or cake", "the night train", "a red bicycle", "two old books")


def texts_of(count: int) -> list[str]:
    """Texts of five subjects in shuffled order, a different number of each."""
    return [f"{SUBJECTS[min(row % 7, 4)]} number {row % 11}" for row in range(count)]


TEXTS = [texts_of(count) for count in (1200, 400)]
by_kind = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)


def deal(rule: Partition, num_devices: int = 20, seed: int = 0) -> Split:
    return rule.split(TRAIN, TEST, 4, num_devices, seed, (USERS[0], USERS[1]), (TEXTS[0], TEXTS[1]))


def marginals(labels: np.ndarray, shards: list[np.ndarray]) -> np.ndarray:
    counts = np.stack([np.bincount(labels[rows], minlength=4) for rows in shards])
    return counts / counts.sum(axis=1, keepdims=True)


def test_every_kind_is_tried_here() -> None:
    assert {rule.kind for rule in RULES} == set(PARTITIONS)


@by_kind
@pytest.mark.parametrize("num_devices", [1, 7, 20, 150])
def test_shards_are_disjoint_and_cover_everything(rule: Partition, num_devices: int) -> None:
    rule = (
        rule.model_copy(update={"classes_per_device": 4}) if num_devices == 1 and rule.kind == "pathological" else rule
    )
    split = deal(rule, num_devices)
    for shards, labels in ((split.train, TRAIN), (split.test, TEST)):
        assert len(shards) == num_devices and all(rows.dtype == np.int64 for rows in shards)
        assert np.sort(np.concatenate(shards)).tolist() == list(range(len(labels)))


@by_kind
def test_same_seed_same_shards_and_other_seed_other_shards(rule: Partition) -> None:
    one, two, other = deal(rule), deal(rule), deal(rule, seed=1)
    assert all((a == b).all() for a, b in zip(one.train + one.test, two.train + two.test, strict=True))
    assert any(a.tolist() != b.tolist() for a, b in zip(one.train, other.train, strict=True))


@by_kind
def test_fewer_test_rows_move_no_training_row(rule: Partition) -> None:
    fewer = rule.split(TRAIN, TEST[:100], 4, 20, 0, (USERS[0], USERS[1][:100]), (TEXTS[0], TEXTS[1][:100]))
    one, two = deal(rule), fewer
    assert all((a == b).all() for a, b in zip(one.train, two.train, strict=True))


@by_kind
def test_more_devices_than_samples_is_refused(rule: Partition) -> None:
    with pytest.raises(ConfigError, match="num_devices: 1201 devices, but only 1200 training samples"):
        deal(rule, 1201)


@by_kind
def test_kind_selects_the_rule(rule: Partition) -> None:
    adapter: TypeAdapter[Partition] = TypeAdapter(get_type_hints(Experiment, include_extras=True)["partition"])
    assert adapter.validate_python(rule.model_dump()) == rule


def test_unknown_key_is_refused() -> None:
    with pytest.raises(ValidationError):
        DirichletLabel.model_validate({"alhpa": 1.0})


def test_large_alpha_gives_every_device_the_global_marginals() -> None:
    split = DirichletLabel(alpha=1e6, size_alpha=1e6).split(np.arange(40_000) % 4, TEST, 4, 10, 0)
    assert np.abs(marginals(np.arange(40_000) % 4, split.train) - 0.25).max() < 0.03  # 4000 rows: sd 0.007


def test_small_alpha_gives_nearly_one_class_per_device() -> None:
    assert (
        marginals(TRAIN, deal(DirichletLabel(alpha=0.001)).train).max(axis=1).mean() > 0.8
    )  # the last devices take what is left


def distance(alpha: float, num_classes: int, num_devices: int, seed: int) -> float:
    """Mean total variation between a device's classes and all of them; devices are alike in size."""
    labels = np.arange(num_classes * 20) % num_classes
    split = DirichletLabel(alpha=alpha, size_alpha=1e6).split(labels, labels[:1], num_classes, num_devices, seed)
    return heterogeneity(split.train, {"label": labels})["label_tv_mean"]


@pytest.mark.parametrize(("num_classes", "num_devices"), [(8, 8), (24, 6)])
def test_skew_grows_as_alpha_falls_below_what_floats_hold(num_classes: int, num_devices: int) -> None:
    found = [
        np.mean([distance(alpha, num_classes, num_devices, seed) for seed in range(6)])
        for alpha in (10.0, 1.0, 0.1, 0.03, 0.01, 1e-4)
    ]
    assert all(more > less for less, more in zip(found, found[1:], strict=False))
    for seed in range(2):
        smallest = [distance(alpha, num_classes, num_devices, seed) for alpha in (1e-6, 1e-9, 1e-300, 5e-324)]
        assert smallest == [smallest[0]] * 4  # the order of a device's classes, which no longer depends on alpha


def test_a_device_without_its_class_takes_the_likeliest_of_those_that_are_left() -> None:
    """Where all shares but the first are 0 in floating point: e^-1000 goes before e^-2000."""
    labels = np.array([0, 0, 1, 1, 1, 2, 2, 3])
    logs = np.array([[0.0, -2000.0, -1000.0, -3000.0], [-9e9, -1000.0, -2000.0, 0.0]])
    draws = Draws(np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]), logs, 1.0)
    for seed in range(5):
        owner = dealing.deal_by_prior(labels, np.array([4, 4]), draws, np.random.default_rng(seed))
        assert owner.tolist() == [0, 0, 1, 1, 1, 0, 0, 1]


@pytest.mark.parametrize("alpha", [1e-12, 1e-4, 0.02, 0.1, 1.0, 50.0, 1e308])
def test_draws_are_dirichlet_at_every_concentration(alpha: float) -> None:
    """E x = 1/C and var x = (C - 1) / (C^2 (C alpha + 1)), and numpy's own draw where it has no zeros."""
    size, rng = 5, np.random.default_rng(1)
    draws = draw(rng, np.random.default_rng(2), alpha, size, 4000)
    shares = draws.shares
    assert np.isfinite(shares).all() and np.allclose(shares.sum(axis=1), 1)
    variance = (size - 1) / (size**2 * (size * min(alpha, 1e300) + 1))
    assert np.abs(shares.mean(axis=0) - 1 / size).max() < 0.03
    assert np.allclose(shares.var(axis=0), variance, rtol=0.1, atol=1e-12)
    assert (draws.logs.argmax(axis=1) == shares.argmax(axis=1)).all()
    numpys = np.random.default_rng(1).dirichlet(np.full(size, min(alpha, 1e300)), size=4000)
    assert (shares == numpys).all() == (numpys > 0).all() == (alpha >= 0.1)


def test_sizes_too_are_drawn_at_every_concentration() -> None:
    for alpha in (1e-8, 1e-320):
        with pytest.raises(ConfigError, match="leaves device .* with 0 of at least 1 samples"):
            deal(DirichletQuantity(alpha=alpha))
    for rule in (DirichletQuantity(alpha=1e308), DirichletLabel(size_alpha=1e308)):
        assert {len(rows) for rows in deal(rule).train} == {60}


def test_train_and_test_use_the_same_sizes_and_priors() -> None:
    split = DirichletLabel(alpha=0.3).split(np.arange(20_000) % 4, np.arange(20_000) % 4, 4, 10, 0)
    train, test = marginals(np.arange(20_000) % 4, split.train), marginals(np.arange(20_000) % 4, split.test)
    assert [len(rows) for rows in split.train] == [len(rows) for rows in split.test]
    assert np.abs(train - test).max() < 0.15 and np.abs(train - 0.25).max() > 0.3


def test_size_vector_is_rounded_with_the_remainder_to_the_last_device() -> None:
    # 0.303 * 100 = 30.3, 0.303 * 100 = 30.3, 0.394 * 100 = 39.4: rounded 30 + 30 + 39 = 99, so the last gets 40.
    assert dealing.sizes_of(np.array([0.303, 0.303, 0.394]), 100).tolist() == [30, 30, 40]


def test_remainder_larger_than_the_last_shard_is_spread() -> None:
    sizes = dealing.sizes_of(np.full(1000, 1 / 1000), 300)  # each rounds to 0
    assert sizes.sum() == 300 and sizes.max() == 1


def test_rows_of_a_class_are_dealt_in_order_and_an_exhausted_class_is_drawn_again() -> None:
    labels = np.array([0, 1, 1, 1])
    priors = np.array([[1.0, 0.0], [0.0, 1.0]])  # device 0 wants class 0 only, which has one row
    draws = Draws(priors, np.log(np.maximum(priors, 1e-300)), 1.0)
    owner = dealing.deal_by_prior(labels, np.array([2, 2]), draws, np.random.default_rng(0))
    assert owner[0] == 0 and np.bincount(owner).tolist() == [2, 2]


def test_dirichlet_quantity_skews_sizes_but_not_labels() -> None:
    about = heterogeneity(deal(DirichletQuantity(alpha=2.0), 5).train, {"label": TRAIN})
    assert about["largest_shard"] > 2 * about["smallest_shard"] and about["label_tv_mean"] < 0.1


def test_iid_shards_differ_by_one_row_at_most() -> None:
    assert sorted({len(rows) for rows in deal(Iid(), 7).train}) == [171, 172]  # 1200 = 3 * 172 + 4 * 171


@pytest.mark.parametrize("wanted", [1, 2, 4])
def test_pathological_devices_have_that_many_classes(wanted: int) -> None:
    split = deal(Pathological(classes_per_device=wanted))
    assert {len(set(TRAIN[rows])) for rows in split.train} == {wanted}
    assert all(set(TEST[test]) <= set(TRAIN[train]) for train, test in zip(split.train, split.test, strict=True))


def test_mcmahan_shards_hold_few_classes_and_test_rows_follow() -> None:
    split = deal(Shards(shards_per_device=2))
    assert {len(rows) for rows in split.train} == {60}  # 40 pieces of 30 rows, two each
    assert all(len(set(TRAIN[rows])) <= 2 for rows in split.train)
    assert all(set(TEST[test]) <= set(TRAIN[train]) for train, test in zip(split.train, split.test, strict=True))


@pytest.mark.parametrize(
    ("rule", "num_devices", "says"),
    [
        (
            DirichletQuantity(alpha=0.01),
            20,
            r"partition.alpha: 0.01 leaves device \d+ with 0 of at least 1 samples; raise",
        ),
        (DirichletLabel(size_alpha=0.01), 20, "partition.size_alpha: 0.01 leaves device .* raise size_alpha, or lower"),
        (Iid(min_samples=61), 20, "partition.min_samples: 61 leaves device 0 with 60 of at least 61"),
        (Pathological(classes_per_device=5), 20, "partition.classes_per_device: 5, but the task has 4 classes"),
        (Pathological(classes_per_device=1), 3, "leaves some of the 4 classes without a device"),
        (Shards(shards_per_device=600), 20, None),  # 12,000 pieces of 1,200 rows: still 60 rows each
    ],
)
def test_too_small_a_shard_names_the_setting(rule: Partition, num_devices: int, says: str | None) -> None:
    if says is None:
        assert min(len(rows) for rows in deal(rule, num_devices).train) >= 1
        return
    with pytest.raises(ConfigError, match=says):
        deal(rule, num_devices)


def test_ten_thousand_devices_are_dealt() -> None:
    labels = np.arange(100_000) % 6
    split = DirichletLabel().split(labels, labels[:500], 6, 10_000, 0)
    assert sum(map(len, split.train)) == 100_000 and sum(map(len, split.test)) == 500
    assert max(map(len, split.test)) <= 1


def test_heterogeneity_by_hand() -> None:
    # Globally (1/2, 1/2); device 0 has only class 0 and device 1 only class 1: |1 - 1/2| = 1/2 for both.
    labels = {"label": np.array([0, 0, 1, 1])}
    apart = heterogeneity([np.array([0, 1]), np.array([2, 3])], labels)
    assert apart == {"label_tv_mean": 0.5, "smallest_shard": 2.0, "largest_shard": 2.0}
    alike = heterogeneity([np.array([0, 2]), np.array([1, 3]), np.array([], dtype=np.int64)], labels)
    assert alike == {"label_tv_mean": 0.0, "smallest_shard": 0.0, "largest_shard": 2.0}


def test_majorities_by_hand() -> None:
    train = np.array([0, 0, 0, 1, 1])
    split = Split([np.array([0, 1, 2]), np.array([3, 4])], [np.array([0, 3]), np.array([1, 2])])
    said = {name: answers.tolist() for name, answers in majorities(train, split).items()}
    assert said == {"majority": [0, 0, 0, 0], "own_majority": [0, 1, 1, 0]}


@by_kind
def test_random_labels_make_own_majority_no_better_than_chance_when_devices_are_alike(rule: Partition) -> None:
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 4, 4000), rng.integers(0, 4, 4000)
    users, texts = [f"{row % 50}" for row in range(4000)], texts_of(4000)
    split = rule.split(train, test, 4, 10, 0, (users, users), (texts, texts))
    accuracy = (majorities(train, split)["own_majority"] == test).mean()
    if not rule.deals_by_label:
        assert abs(accuracy - 0.25) < 0.03
    else:
        assert accuracy > 0.35


# --- users of the data set


def test_each_user_is_a_device() -> None:
    split = deal(ByColumn(column="user"), 170)
    for rows, users in ((split.train, USERS[0]), (split.test, USERS[1])):
        owners = [{users[row] for row in shard} for shard in rows]
        assert all(len(names) == 1 for names in owners) and len(set.union(*owners)) == 170
    assert all(
        {USERS[0][row] for row in train} == {USERS[1][row] for row in test}
        for train, test in zip(split.train, split.test, strict=True)
    )


def test_fewer_devices_than_users_get_whole_users_and_even_shards() -> None:
    users = ["a"] * 60 + ["b"] * 30 + ["c"] * 20 + ["d"] * 10 + ["e"] * 10
    split = ByColumn(column="user").split(TRAIN[:130], TEST[:0], 4, 2, 0, (users, []))
    shards = [{users[row] for row in shard} for shard in split.train]
    assert shards[0] & shards[1] == set() and sorted(map(len, split.train)) == [60, 70]


def test_test_rows_of_unknown_users_are_dealt_evenly() -> None:
    split = ByColumn(column="user").split(
        TRAIN[:4], TEST[:8], 4, 2, 0, (["a", "a", "b", "b"], ["a", "b"] + ["new"] * 6)
    )
    assert [len(shard) for shard in split.test] == [4, 4] and 0 in split.test[0] and 1 in split.test[1]


def test_more_devices_than_users_are_refused() -> None:
    with pytest.raises(ConfigError, match="171 devices, but column 'user' has 170 .* set num_devices=170"):
        deal(ByColumn(column="user"), 171)


def test_users_are_the_groups_that_are_reported() -> None:
    split = deal(ByColumn(column="user"), 170)
    users = np.asarray(USERS[0])
    assert all(len(set(users[split.groups["user"] == code])) == 1 for code in range(170))
    found = heterogeneity(split.train, {"label": TRAIN, **split.groups})
    assert found["user_tv_mean"] == pytest.approx(np.mean([1 - len(rows) / 1200 for rows in split.train]))


# --- topics of the texts


def test_topics_are_the_subjects_and_are_dealt_like_labels() -> None:
    split = deal(Topics(num_topics=5, alpha=0.05), 10)
    topics, subjects = split.groups["topic"], np.array([min(row % 7, 4) for row in range(1200)])
    assert len({(a, b) for a, b in zip(topics.tolist(), subjects.tolist(), strict=True)}) == 5
    found = heterogeneity(split.train, {"label": TRAIN, **split.groups})
    assert found["topic_tv_mean"] > 0.5 > 0.2 > found["label_tv_mean"]
    for train, test in zip(split.train, split.test, strict=True):
        shares = [np.bincount(subjects[rows], minlength=5) / len(rows) for rows in (train, test)]
        assert np.abs(shares[0] - shares[1]).sum() < 1


def test_topic_skew_grows_as_alpha_falls() -> None:
    found = []
    for alpha in (100.0, 1.0, 0.01):
        split = deal(Topics(num_topics=5, alpha=alpha, size_alpha=1e6))
        found.append(heterogeneity(split.train, split.groups)["topic_tv_mean"])
    assert found[0] < found[1] - 0.1 < found[2] - 0.2


def test_more_topics_than_texts_are_refused_with_the_number_that_works() -> None:
    with pytest.raises(
        ConfigError, match=r"partition.num_topics: 500 topics, .* 55 different groups; set num_topics=55"
    ):
        deal(Topics(num_topics=500))
    assert len(deal(Topics(num_topics=55)).train) == 20


# --- rows of a task


def rows_of(kind: str, **changes: Any) -> Rows:
    labels = np.zeros(40, np.int64)
    texts = TEXTS[0][:40]
    made: dict[str, Rows] = {
        "examples": Examples(texts, None, labels),
        "instructions": Instructions(texts, [""] * 40, ["yes"] * 40, labels, ("",)),
        "points": Points(np.zeros((40, 2), np.float32), labels),
    }
    return replace(made[kind], **changes)  # type: ignore[type-var]


@pytest.mark.parametrize("kind", ["examples", "instructions", "points"])
def test_rows_of_every_kind_are_dealt_by_their_users(kind: str) -> None:
    rows = rows_of(kind, users=[f"user {row % 4}" for row in range(40)])
    split = ByColumn(column="user").deal(rows, rows.take(np.arange(8)), 1, 4, 0)
    assert [rows.tolist() for rows in split.train] == [list(range(user, 40, 4)) for user in range(4)]
    assert [rows.tolist() for rows in split.test] == [[user, user + 4] for user in range(4)]


@pytest.mark.parametrize("kind", ["examples", "instructions"])
def test_rows_with_texts_are_dealt_by_topic(kind: str) -> None:
    rows = rows_of(kind)
    split = Topics(num_topics=3).deal(rows, rows, 1, 2, 0)
    assert sum(map(len, split.train)) == 40 and set(split.groups["topic"].tolist()) == {0, 1, 2}


def test_rows_that_lack_what_the_rule_needs_are_refused() -> None:
    points = rows_of("points")
    with pytest.raises(ConfigError, match="partition.kind: topics deals rows by their texts, .* such as iid"):
        Topics().deal(points, points, 1, 2, 0)
    with pytest.raises(ConfigError, match="partition.column: .* no column 'user'; .* such as iid"):
        ByColumn(column="user").deal(points, points, 1, 2, 0)
    assert len(Iid().deal(points, points, 1, 2, 0).train) == 2


def test_the_text_of_a_row_is_what_a_model_reads_without_the_answer() -> None:
    assert Examples(["a", "c"], ["b", ""], np.zeros(2, np.int64)).texts() == ["a\nb", "c"]
    told = Instructions(["add", "go"], ["1 2", ""], ["3", "ok"], np.zeros(2, np.int64), ("",))
    assert told.texts() == ["add\n1 2", "go"] and rows_of("points").texts() is None
