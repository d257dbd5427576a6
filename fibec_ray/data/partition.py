"""Deals rows to devices: one class for each kind of the YAML section `partition`.

flwr-datasets has similar rules but pins datasets<5 and rich<15, which conflicts with this package's dependencies.
N rows, K devices, C classes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fibec_ray.data import dealing
from fibec_ray.data.partition_base import Deal, Owners, Partition
from fibec_ray.data.topics import topics_of
from fibec_ray.errors import ConfigError

Concentration = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Iid(Partition):
    """All devices draw from the same distribution; shard sizes differ by at most one row."""

    kind: Literal["iid"] = "iid"

    deals_by_label: ClassVar[bool] = False

    def owners(self, deal: Deal) -> Owners:
        train = dealing.deal_evenly(len(deal.train_labels), deal.num_devices, deal.train)
        return Owners(train, dealing.deal_evenly(len(deal.test_labels), deal.num_devices, deal.test))


class DirichletLabel(Partition):
    """Label skew and size skew as in FedPepTAO's code (Che et al. 2023, from the authors of FibecFed).

    Sizes ~ Dirichlet(size_alpha, ...) * N; one class prior per device ~ Dirichlet(alpha, ...). Then row by row: a
    random device that is not full, a class from its prior, the next row of that class; a class with no rows left is
    drawn again. Test rows use the same sizes and priors.

    alpha -> 0 gives each device one class, then the next likeliest once that has run out. alpha -> inf gives equal
    label marginals if the classes are balanced. With unbalanced classes the priors are still uniform over classes, so
    large devices, which fill last, get more of the large classes.
    """

    kind: Literal["dirichlet_label"] = "dirichlet_label"
    alpha: Concentration = Field(1.0, description="label skew: small is skewed. FedPepTAO uses 1.0")
    size_alpha: Concentration = Field(5.0, description="size skew: small is skewed. FedPepTAO uses 5.0")

    size_setting: ClassVar[str] = "size_alpha"
    remedy: ClassVar[str] = "raise size_alpha, or lower min_samples or num_devices"

    def owners(self, deal: Deal) -> Owners:
        return _owners_by_prior(deal, self.alpha, self.size_alpha)


class DirichletQuantity(Partition):
    """Size skew only: sizes ~ Dirichlet(alpha, ...) * N, rows at random. alpha -> inf is `Iid`."""

    kind: Literal["dirichlet_quantity"] = "dirichlet_quantity"
    alpha: Concentration = Field(1.0, description="size skew: small is skewed")

    size_setting: ClassVar[str] = "alpha"
    remedy: ClassVar[str] = "raise alpha, or lower min_samples or num_devices"
    deals_by_label: ClassVar[bool] = False

    def owners(self, deal: Deal) -> Owners:
        shares = dealing.draw(deal.common, deal.spare, self.alpha, deal.num_devices, 1).shares[0]
        train = dealing.deal_by_size(dealing.sizes_of(shares, len(deal.train_labels)), deal.train)
        return Owners(train, dealing.deal_by_size(dealing.sizes_of(shares, len(deal.test_labels)), deal.test))


class Pathological(Partition):
    """Each device has rows of a few classes only; each class is divided evenly among the devices that have it."""

    kind: Literal["pathological"] = "pathological"
    classes_per_device: int = Field(2, ge=1, description="classes that a device has rows of")

    size_setting: ClassVar[str] = "classes_per_device"
    remedy: ClassVar[str] = "raise classes_per_device, or lower min_samples or num_devices"

    def owners(self, deal: Deal) -> Owners:
        wanted, classes, devices = self.classes_per_device, deal.num_classes, deal.num_devices
        if wanted > classes:
            raise ConfigError(f"partition.classes_per_device: {wanted}, but the task has {classes} classes; lower it")
        if wanted * devices < classes:
            raise ConfigError(
                f"partition.classes_per_device: {wanted} for each of {devices} devices leaves some of the {classes} "
                "classes without a device; raise it or num_devices"
            )
        # Devices take consecutive classes of a ring, so the classes' numbers of devices differ by at most one.
        ring, seats = deal.common.permutation(classes), deal.common.permutation(devices)
        takes = ring[(seats[:, None] * wanted + np.arange(wanted)) % classes]
        has = np.zeros((devices, classes), dtype=np.int64)
        np.put_along_axis(has, takes, 1, axis=1)
        train = dealing.deal_by_class_counts(deal.train_labels, has, deal.train)
        return Owners(train, dealing.deal_by_class_counts(deal.test_labels, has, deal.test))


class Shards(Partition):
    """Sort and deal (McMahan et al. 2017): rows sorted by label, cut into equal pieces, a few pieces to each device.

    The paper uses 2 pieces per device on MNIST and has no test shards. Here each class's test rows are divided in
    proportion to the training rows of that class on each device.
    """

    kind: Literal["shards"] = "shards"
    shards_per_device: int = Field(2, ge=1, description="pieces that a device gets")

    size_setting: ClassVar[str] = "shards_per_device"
    remedy: ClassVar[str] = "lower shards_per_device, min_samples or num_devices"

    def owners(self, deal: Deal) -> Owners:
        num_rows, num_pieces = len(deal.train_labels), deal.num_devices * self.shards_per_device
        shuffled = deal.train.permutation(num_rows)  # rows of one class are dealt in random order
        by_label = shuffled[np.argsort(deal.train_labels[shuffled], kind="stable")]
        piece_owner = dealing.deal_evenly(num_pieces, deal.num_devices, deal.common)
        train = np.empty(num_rows, dtype=np.int64)
        train[by_label] = piece_owner[np.arange(num_rows) * num_pieces // num_rows]
        counts = dealing.class_counts(deal.train_labels, train, deal.num_devices, deal.num_classes)
        return Owners(train, dealing.deal_by_class_counts(deal.test_labels, counts, deal.test))


class ByColumn(Partition):
    """The data set's own split into users: all rows of a user are on one device.

    With as many devices as users each device is one user. With fewer devices, users are dealt to devices so that the
    shards have about the same size. Test rows go to their user's device; those of users without training rows are dealt
    evenly.
    """

    kind: Literal["by_column"] = "by_column"
    column: str = Field(min_length=1, description="column of the data files with an id for each user")

    size_setting: ClassVar[str] = "column"
    remedy: ClassVar[str] = "lower min_samples or num_devices"
    deals_by_label: ClassVar[bool] = False
    group_name: ClassVar[str] = "user"

    @property
    def user_column(self) -> str | None:
        return self.column

    def owners(self, deal: Deal) -> Owners:
        names, train, counts = np.unique(np.asarray(deal.train_users), return_inverse=True, return_counts=True)
        if len(names) < deal.num_devices:
            raise ConfigError(
                f"num_devices: {deal.num_devices} devices, but column '{self.column}' has {len(names)} different "
                f"values in the training rows; set num_devices={len(names)}, or less to put several on a device"
            )
        owner_of = dealing.deal_groups(counts, deal.num_devices, deal.common)
        test = dealing.deal_evenly(len(deal.test_users), deal.num_devices, deal.test)
        number = {str(name): i for i, name in enumerate(names)}
        for row, user in enumerate(deal.test_users):
            if user in number:
                test[row] = owner_of[number[user]]
        return Owners(owner_of[train], test, train.astype(np.int64))


class Topics(Partition):
    """Topic skew without labels: texts are clustered, and the clusters are dealt as `DirichletLabel` deals classes.

    A topic is a k-means cluster of TF-IDF vectors reduced by a truncated SVD (`data/topics.py`). Topics are fitted on
    the training rows; a test row belongs to the topic with the nearest centre. Works for every task with texts, also
    for instructions without categories. As with unbalanced classes, the priors are uniform over topics of any size.
    """

    kind: Literal["topics"] = "topics"
    num_topics: int = Field(10, ge=2, le=1000, description="clusters of texts")
    alpha: Concentration = Field(1.0, description="topic skew: small is skewed")
    size_alpha: Concentration = Field(5.0, description="size skew: small is skewed")

    size_setting: ClassVar[str] = "size_alpha"
    remedy: ClassVar[str] = "raise size_alpha, or lower min_samples or num_devices"
    deals_by_label: ClassVar[bool] = False
    needs_texts: ClassVar[bool] = True
    group_name: ClassVar[str] = "topic"

    def owners(self, deal: Deal) -> Owners:
        train, test = topics_of(deal.train_texts, deal.test_texts, self.num_topics, deal.topics)
        by_topic = replace(deal, train_labels=train, test_labels=test, num_classes=self.num_topics)
        return _owners_by_prior(by_topic, self.alpha, self.size_alpha)._replace(groups=train)


def _owners_by_prior(deal: Deal, alpha: float, size_alpha: float) -> Owners:
    """Sizes ~ Dirichlet(size_alpha), class priors ~ Dirichlet(alpha); the same ones for training and test rows."""
    shares = dealing.draw(deal.common, deal.spare, size_alpha, deal.num_devices, 1).shares[0]
    priors = dealing.draw(deal.common, deal.spare, alpha, deal.num_classes, deal.num_devices)
    train, test = (
        dealing.deal_by_prior(labels, dealing.sizes_of(shares, len(labels)), priors, rng)
        for labels, rng in ((deal.train_labels, deal.train), (deal.test_labels, deal.test))
    )
    return Owners(train, test)


PARTITIONS: dict[str, type[Partition]] = {
    "by_column": ByColumn,
    "dirichlet_label": DirichletLabel,
    "dirichlet_quantity": DirichletQuantity,
    "iid": Iid,
    "pathological": Pathological,
    "shards": Shards,
    "topics": Topics,
}

WITHOUT_LABELS = tuple(kind for kind, rule in PARTITIONS.items() if not rule.deals_by_label and rule is not ByColumn)
"""Kinds that work for rows without labels."""
