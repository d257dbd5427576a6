"""The base class of all backbones: what a run needs to know of one, and what it lets a backbone do.

Nothing outside models/ asks which kind a backbone is. `kinds.py` lists the kinds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel
from torch import Tensor

from fibec_ray.answers import Readout
from fibec_ray.encoder import EncodeMode, Encoder, Reads
from fibec_ray.errors import DataError
from fibec_ray.model_types import BatchForm
from fibec_ray.models.built import BuiltModel, ModelRequest, SizedModel
from fibec_ray.models.settings import AdapterDtype, Backend
from fibec_ray.types import Products

Dtype = Literal["float32", "bfloat16"]
Lack = Literal["transformer", "one_stack", "position"]
"""A need of parts (`parts.part.Need`) that a backbone may not meet."""


class AnyBackbone(BaseModel, ABC, frozen=True):
    """Settings of a model that devices train, and how it is built.

    The defaults are those of a small model that is trained from scratch. Methods import torch and transformers
    themselves, so that loading a config stays fast.
    """

    has_base: ClassVar[bool] = False
    """True if there are frozen weights, which each node prepares once; False if all weights are trained"""
    local_settings: ClassVar[tuple[str, ...]] = ()
    """settings that may name a folder of this machine, which a job takes along"""

    # --- what it can do

    @property
    def lacks(self) -> tuple[Lack, ...]:
        """What parts may need and it does not have."""
        return ("transformer",)

    def unfit_for(self, readout: Readout) -> str | None:
        """Why it cannot give such scores, and what to do, after the name of a task; None if it can."""
        return None

    @property
    @abstractmethod
    def title(self) -> str:
        """What messages call it."""

    @property
    @abstractmethod
    def reads(self) -> Reads:
        """What samples must be made of."""

    def can_read(self, reads: Reads) -> bool:
        """True if it takes samples that are made of this."""
        return reads == self.reads

    @property
    def encode_mode(self) -> EncodeMode:
        """How texts are laid out for its scores."""
        return "plain"

    @property
    def writes_text(self) -> bool:
        """True if it can answer in text."""
        return False

    @property
    def has_laplacian(self) -> bool:
        """True if scores can be a differential operator of the network's output (`Answers.readout` operator)."""
        return False

    @property
    def scores_by(self) -> str:
        """What messages call its way of making scores; '' if there is no choice."""
        return ""

    @property
    def num_layers(self) -> int | None:
        """Number of blocks; None if only the built model knows it."""
        return None

    @property
    def base_dtype(self) -> Dtype:
        """dtype of its products."""
        return "float32"

    @property
    def adapter_products(self) -> AdapterDtype:
        """dtype of an adapter's products, see `PretrainedSettings.adapter_dtype`."""
        return "float32"

    @property
    def uses_tf32(self) -> bool:
        """True if float32 products on a GPU are in TF32."""
        return False

    @property
    def has_dropout(self) -> bool:
        """True if training uses the base's own dropout."""
        return False

    @property
    def base_backend(self) -> Backend:
        """Where a node keeps the frozen base; "plain" without one."""
        return "plain"

    @property
    def has_products(self) -> bool:
        """True if `fleet.products` applies to its frozen layers; some backends always use PyTorch's products."""
        return self.has_base and self.base_backend in ("auto", "plain")

    @property
    def recomputes(self) -> bool:
        """True if blocks are computed again in the backward pass."""
        return False

    @property
    def transformers_class(self) -> str | None:
        """The Auto class that loads it with transformers alone; None if none does."""
        return None

    def pipeline(self, task: str | None) -> str | None:
        """The Hugging Face hub's name for the model. task: that of the task."""
        return task if self.has_base else None

    @property
    def adds_head(self) -> bool:
        """True if our own classifier, which no config of transformers describes, is saved beside the model."""
        return False

    @property
    def has_classifier(self) -> bool:
        """True if scores come from the architecture's own classifier; its config has the names of the classes."""
        return False

    @abstractmethod
    def describe(self, base: str | None, seed: int) -> str:
        """The backbone in a line of a model card. base: hub id or path of its weights. seed: of random weights."""

    # --- data

    def check(self, writes_text: bool = False) -> None:
        """Raise ModelError for an architecture or a setting that is not supported; call it before loading data.

        writes_text: the task needs answers in text.
        """

    def preprocessor(self) -> Any:
        """transformers' tokenizer (or image processor); None if samples are numbers. Raises ModelError."""
        return None

    def encoder(self, max_length: int, num_virtual: int = 0) -> Encoder:
        """How samples become inputs. Raises ModelError if the model has too few tokens or positions.

        max_length: most tokens of a sample. num_virtual: tokens that the PEFT kind puts before them.
        """
        return Encoder(self.reads)

    def encoder_with(self, preprocessor: Any, max_length: int) -> Encoder:
        """The same with a preprocessor that is there already, without checks."""
        return Encoder(self.reads, preprocessor, self.encode_mode, max_length)

    @abstractmethod
    def fit(self, sets: Sequence[Any], encoder: Encoder, words: Sequence[int] = ()) -> list[Any]:
        """The encoded sets as the model can read them. Raises ModelError if it cannot.

        sets: for training and for testing. encoder: that they were encoded with. words: token ids of label words.
        """

    def takes_types(self, highest: int) -> bool:
        """True if scores depend on token types up to `highest`. Raises ModelError if the model has too few types."""
        return False

    def notes(self, num_scores: int) -> list[str]:
        """What the user should know about this backbone on a task with so many scores."""
        return []

    # --- frozen weights

    def prepared_folder(self, seed: int, num_scores: int, cache_dir: Path) -> Path | None:
        """The folder that `prepare` uses, which may not exist yet; None without frozen weights."""
        return None

    def prepare(self, seed: int, num_scores: int, cache_dir: Path) -> Path | None:
        """Prepare the frozen weights on this node. Returns their folder; None without frozen weights.

        seed: of random weights. Safe to call concurrently. Raises ModelError.
        """
        return None

    def fingerprint(self, base: Path | None) -> str:
        """Digest of the weights in a folder that `prepare` returned; '' without frozen weights."""
        return ""

    def find_products(self, rows: int, threads: int, cache_dir: Path) -> Products | None:
        """The fastest products of frozen layers on this machine, by a short trial; None without frozen weights.

        rows: tokens of a training batch. threads: of a process. cache_dir: keeps the choice for later runs.
        """
        return None

    def open_base(self, folder: Path) -> Any:
        """The frozen model in a folder of weights; None without frozen weights."""
        return None

    # --- models

    @abstractmethod
    def build(
        self, request: ModelRequest, base: Any = None, device: str = "cpu", beside: int | None = None
    ) -> BuiltModel:
        """Build the model that devices train.

        base: what `prepare` or `open_base` returned. device: torch's. beside: planned GPU memory beside the base, in
        bytes; None: not planned. Raises ModelError.
        """

    @abstractmethod
    def outline(self, request: ModelRequest, form: BatchForm, num_blocks: int | None = None) -> SizedModel:
        """Build the model without values where it is large, to plan a run.

        form: of batches. num_blocks: None: as in the backbone. Raises ModelError.
        """

    # --- saved models

    def local_folder(self) -> Path | None:
        """The folder with its weights, if they are in one on this machine; None for others, such as hub ids."""
        return None

    def reference(self) -> str | None:
        """What a saved adapter calls its base: a hub id, or an absolute path; None for random weights."""
        return None

    def public_source(self) -> dict[str, str] | None:
        """Arguments with which transformers loads the same weights: `pretrained` and maybe `revision`.

        None if there are none: random weights, and models from Python packages, which may differ from the hub's.
        """
        return None

    def found_at(self, home: Path, base: str | None, base_path: str | None, place: str) -> Self:
        """The backbone with its weights where they are now, ready to predict.

        home: folder of the saved model. base: where the user says the weights are; None: look. base_path: their folder
        relative to `home`, if they were in one. place: torch's device. Raises ModelError if they are nowhere.
        """
        return self

    def saved_whole(self, home: Path) -> Self:
        """The backbone after all its weights were trained and saved in a folder."""
        return self

    def exact(self) -> Self:
        """The backbone in float32."""
        return self

    @property
    def auto_peft_class(self) -> str | None:
        """PEFT's Auto class that loads an adapter with its classifier; None if there is none."""
        return None

    def probe(self, preprocessor: Any) -> dict[str, Tensor]:
        """Arguments of the transformers model for one made-up sample; {} without one."""
        return {}

    def with_preprocessor(self, home: Path) -> Self:
        """The backbone with the tokenizer in a folder."""
        return self


def check_alike(sets: Sequence[Any]) -> None:
    """Raise DataError if the samples of two sets differ in shape. sets: for training and for testing."""
    train, test = (each.form.shape for each in sets)
    if train != test:
        raise DataError(
            f"data: training samples have the shape {train}, but test samples {test}; a model needs one shape: for "
            "images, set data.image_size=[HEIGHT,WIDTH]"
        )
