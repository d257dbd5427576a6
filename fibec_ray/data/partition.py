"""Deals rows to devices: one class for each kind of the YAML section `partition`.

flwr-datasets has similar rules but pins datasets<5 and rich<15, which conflicts with this package's dependencies.
N rows, K devices, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, Field

from fibec_ray.data import dealing
from fibec_ray.data.dealing import Ints, Split
from fibec_ray.errors import ConfigError
from fibec_ray.seeds import numpy_generator

Concentration = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Deal:
    """Input of a rule. Train and test have separate generators, so the number of test rows moves no training row."""

    train_labels: Ints
    test_labels: Ints
    num_classes: int
    num_devices: int
    common: np.random.Generator
    """for sizes and priors, which train and test share"""
    train: np.random.Generator
    test: np.random.Generator
    spare: np.random.Generator
    """for sizes and priors too small for floats"""
    train_users: Sequence[str] = ()
    """N user ids, for rules that deal by them"""
    test_users: Sequence[str] = ()


class Partition(BaseModel, ABC, frozen=True, extra="forbid", allow_inf_nan=False):
    """Base of the rules: each training row and each test row goes to exactly one device."""

    kind: str
    min_samples: int = Field(
        1, ge=1, description="training samples that every device must get; test shards may be empty"
    )

    size_setting: ClassVar[str] = "min_samples"
    """the setting that decides the size of the smallest shard"""
    remedy: ClassVar[str] = "lower min_samples or num_devices"
    deals_by_label: ClassVar[bool] = True
    """False for rules that ignore labels"""

    @abstractmethod
    def owners(self, deal: Deal) -> tuple[Ints, Ints]:
        """The device of each training row (N,) and of each test row."""

    @property
    def user_column(self) -> str | None:
        """The column of user ids that the rule needs; None for rules that need none."""
        return None

    def split(
        self,
        train_labels: Ints,
        test_labels: Ints,
        num_classes: int,
        num_devices: int,
        seed: int,
        users: tuple[Sequence[str], Sequence[str]] = ((), ()),
    ) -> Split:
        """The shards of all devices.

        users: ids for the rows of both sets, if the rule needs them. Raises ConfigError if a device would get fewer
        than min_samples.
        """
        assert num_devices >= 1 and num_classes >= 1
        if num_devices > len(train_labels):
            raise ConfigError(
                f"num_devices: {num_devices} devices, but only {len(train_labels)} training samples; lower num_devices"
            )
        common, train, test, spare = (
            numpy_generator(seed, "partition", self.kind, part) for part in ("common", "train", "test", "spare")
        )
        deal = Deal(train_labels, test_labels, num_classes, num_devices, common, train, test, spare, *users)
        train_owner, test_owner = self.owners(deal)
        sizes = np.bincount(train_owner, minlength=num_devices)
        if sizes.min() < self.min_samples:
            device = int(sizes.argmin())
            raise ConfigError(
                f"partition.{self.size_setting}: {getattr(self, self.size_setting)} leaves device {device} with "
                f"{sizes[device]} of at least {self.min_samples} samples; {self.remedy}"
            )
        return Split(dealing.shards_of(train_owner, num_devices), dealing.shards_of(test_owner, num_devices))


class Iid(Partition):
    """All devices draw from the same distribution; shard sizes differ by at most one row."""

    kind: Literal["iid"] = "iid"

    deals_by_label: ClassVar[bool] = False

    def owners(self, deal: Deal) -> tuple[Ints, Ints]:
        train = dealing.deal_evenly(len(deal.train_labels), deal.num_devices, deal.train)
        return train, dealing.deal_evenly(len(deal.test_labels), deal.num_devices, deal.test)


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

    def owners(self, deal: Deal) -> tuple[Ints, Ints]:
        shares = dealing.draw(deal.common, deal.spare, self.size_alpha, deal.num_devices, 1).shares[0]
        priors = dealing.draw(deal.common, deal.spare, self.alpha, deal.num_classes, deal.num_devices)
        train, test = (
            dealing.deal_by_prior(labels, dealing.sizes_of(shares, len(labels)), priors, rng)
            for labels, rng in ((deal.train_labels, deal.train), (deal.test_labels, deal.test))
        )
        return train, test


class DirichletQuantity(Partition):
    """Size skew only: sizes ~ Dirichlet(alpha, ...) * N, rows at random. alpha -> inf is `Iid`."""

    kind: Literal["dirichlet_quantity"] = "dirichlet_quantity"
    alpha: Concentration = Field(1.0, description="size skew: small is skewed")

    size_setting: ClassVar[str] = "alpha"
    remedy: ClassVar[str] = "raise alpha, or lower min_samples or num_devices"
    deals_by_label: ClassVar[bool] = False

    def owners(self, deal: Deal) -> tuple[Ints, Ints]:
        shares = dealing.draw(deal.common, deal.spare, self.alpha, deal.num_devices, 1).shares[0]
        train = dealing.deal_by_size(dealing.sizes_of(shares, len(deal.train_labels)), deal.train)
        return train, dealing.deal_by_size(dealing.sizes_of(shares, len(deal.test_labels)), deal.test)


class Pathological(Partition):
    """Each device has rows of a few classes only; each class is divided evenly among the devices that have it."""

    kind: Literal["pathological"] = "pathological"
    classes_per_device: int = Field(2, ge=1, description="classes that a device has rows of")

    size_setting: ClassVar[str] = "classes_per_device"
    remedy: ClassVar[str] = "raise classes_per_device, or lower min_samples or num_devices"

    def owners(self, deal: Deal) -> tuple[Ints, Ints]:
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
        return train, dealing.deal_by_class_counts(deal.test_labels, has, deal.test)


class Shards(Partition):
    """Sort and deal (McMahan et al. 2017): rows sorted by label, cut into equal pieces, a few pieces to each device.

    The paper uses 2 pieces per device on MNIST and has no test shards. Here each class's test rows are divided in
    proportion to the training rows of that class on each device.
    """

    kind: Literal["shards"] = "shards"
    shards_per_device: int = Field(2, ge=1, description="pieces that a device gets")

    size_setting: ClassVar[str] = "shards_per_device"
    remedy: ClassVar[str] = "lower shards_per_device, min_samples or num_devices"

    def owners(self, deal: Deal) -> tuple[Ints, Ints]:
        num_rows, num_pieces = len(deal.train_labels), deal.num_devices * self.shards_per_device
        shuffled = deal.train.permutation(num_rows)  # rows of one class are dealt in random order
        by_label = shuffled[np.argsort(deal.train_labels[shuffled], kind="stable")]
        piece_owner = dealing.deal_evenly(num_pieces, deal.num_devices, deal.common)
        train = np.empty(num_rows, dtype=np.int64)
        train[by_label] = piece_owner[np.arange(num_rows) * num_pieces // num_rows]
        counts = dealing.class_counts(deal.train_labels, train, deal.num_devices, deal.num_classes)
        return train, dealing.deal_by_class_counts(deal.test_labels, counts, deal.test)


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

    @property
    def user_column(self) -> str | None:
        return self.column

    def owners(self, deal: Deal) -> tuple[Ints, Ints]:
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
        return owner_of[train], test


PARTITIONS: dict[str, type[Partition]] = {
    "by_column": ByColumn,
    "dirichlet_label": DirichletLabel,
    "dirichlet_quantity": DirichletQuantity,
    "iid": Iid,
    "pathological": Pathological,
    "shards": Shards,
}

WITHOUT_LABELS = tuple(kind for kind, rule in PARTITIONS.items() if not rule.deals_by_label and rule is not ByColumn)
"""Kinds that work for rows without labels."""

AnyPartition = Annotated[
    ByColumn | DirichletLabel | DirichletQuantity | Iid | Pathological | Shards, Field(discriminator="kind")
]
