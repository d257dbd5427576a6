"""Base of the rules that deal rows to devices. `partition.py` has the rules. N rows, K devices, C classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from pydantic import BaseModel, Field

from fibec_ray.data import dealing
from fibec_ray.data.dealing import Ints, Split
from fibec_ray.data.examples import Rows
from fibec_ray.errors import ConfigError
from fibec_ray.seeds import numpy_generator


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
    topics: np.random.Generator
    """for clusters of texts"""
    train_users: Sequence[str] = ()
    """N user ids, for rules that deal by them"""
    test_users: Sequence[str] = ()
    train_texts: Sequence[str] = ()
    """N texts, for rules that deal by them"""
    test_texts: Sequence[str] = ()


class Owners(NamedTuple):
    """The device of each row."""

    train: Ints
    """(N,)"""
    test: Ints
    groups: Ints | None = None
    """(N,) groups of the training rows that the rule dealt by, if they are not the labels"""


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
    needs_texts: ClassVar[bool] = False
    """True for rules that read the texts of the rows"""
    group_name: ClassVar[str] = "label"
    """what the rule deals by; names the groups of `Owners` in reports"""

    @abstractmethod
    def owners(self, deal: Deal) -> Owners:
        """The device of each training row and of each test row."""

    @property
    def user_column(self) -> str | None:
        """The column of user ids that the rule needs; None for rules that need none."""
        return None

    def unfit_for(self, task: str, has_columns: bool, has_texts: bool) -> str | None:
        """Why the rule cannot deal the rows of a task, starting with the setting to change; None if it can.

        has_columns: rows come from files or the hub. has_texts: rows have texts.
        """
        if self.user_column is not None and not has_columns:
            return (
                f"column: {task} makes its own rows and has no column {self.user_column!r}; set data.path to a file "
                "that has it, or choose another partition.kind, such as iid"
            )
        if self.needs_texts and not has_texts:
            return (
                f"kind: {self.kind} deals rows by their texts, but {task} has no text; choose another partition.kind, "
                "such as iid"
            )
        return None

    def deal(self, train: Rows, test: Rows, num_classes: int, num_devices: int, seed: int) -> Split:
        """The shards of all devices, by the labels, users or texts of the rows.

        Raises ConfigError if the rule needs users or texts that the rows lack, and as `split` does.
        """
        has_users = train.users is not None and test.users is not None
        train_texts, test_texts = train.texts(), test.texts()
        has_texts = train_texts is not None and test_texts is not None
        if why := self.unfit_for("the task", has_users, has_texts):
            raise ConfigError(f"partition.{why}")
        users, texts = (train.users or (), test.users or ()), (train_texts or (), test_texts or ())
        return self.split(train.labels, test.labels, num_classes, num_devices, seed, users, texts)

    def split(
        self,
        train_labels: Ints,
        test_labels: Ints,
        num_classes: int,
        num_devices: int,
        seed: int,
        users: tuple[Sequence[str], Sequence[str]] = ((), ()),
        texts: tuple[Sequence[str], Sequence[str]] = ((), ()),
    ) -> Split:
        """The shards of all devices.

        users, texts: those of the rows of both sets, if the rule needs them. Raises ConfigError if a device would get
        fewer than min_samples.
        """
        assert num_devices >= 1 and num_classes >= 1
        if num_devices > len(train_labels):
            raise ConfigError(
                f"num_devices: {num_devices} devices, but only {len(train_labels)} training samples; lower num_devices"
            )
        names = ("common", "train", "test", "spare", "topics")
        generators = {name: numpy_generator(seed, "partition", self.kind, name) for name in names}
        deal = Deal(
            train_labels,
            test_labels,
            num_classes,
            num_devices,
            **generators,
            train_users=users[0],
            test_users=users[1],
            train_texts=texts[0],
            test_texts=texts[1],
        )
        owners = self.owners(deal)
        sizes = np.bincount(owners.train, minlength=num_devices)
        if sizes.min() < self.min_samples:
            device = int(sizes.argmin())
            raise ConfigError(
                f"partition.{self.size_setting}: {getattr(self, self.size_setting)} leaves device {device} with "
                f"{sizes[device]} of at least {self.min_samples} samples; {self.remedy}"
            )
        groups = {} if owners.groups is None else {self.group_name: owners.groups}
        train_shards, test_shards = (dealing.shards_of(each, num_devices) for each in (owners.train, owners.test))
        return Split(train_shards, test_shards, groups)
