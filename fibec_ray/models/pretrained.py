"""What backbones from transformers have in common: weights that each node prepares once, and saved models.

A backbone has the architecture and the weights of a checkpoint, or an architecture with random weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from fibec_ray.errors import ModelError
from fibec_ray.models.base import AnyBackbone, Dtype, Lack
from fibec_ray.models.built import ModelRequest
from fibec_ray.models.packaged import PACKAGED
from fibec_ray.models.settings import AdapterDtype, Backend, PretrainedSettings
from fibec_ray.types import Products

if TYPE_CHECKING:
    from fibec_ray.models.torch_model import ModelSpec


class Pretrained(PretrainedSettings, AnyBackbone, frozen=True):
    """A frozen base model that devices adapt."""

    has_base: ClassVar[bool] = True

    @property
    def lacks(self) -> tuple[Lack, ...]:
        return ()

    @property
    def base_dtype(self) -> Dtype:
        return self.dtype

    @property
    def adapter_products(self) -> AdapterDtype:
        return self.adapter_dtype

    @property
    def uses_tf32(self) -> bool:
        return self.tf32

    @property
    def has_dropout(self) -> bool:
        return self.dropout

    @property
    def base_backend(self) -> Backend:
        return self.backend

    @property
    def recomputes(self) -> bool:
        return self.checkpointing

    @property
    def transformers_class(self) -> str:
        return self.auto_classes[self.head]

    @property
    def scores_by(self) -> str:
        return f"backbone.head {self.head}"

    @property
    def adds_head(self) -> bool:
        return self.head == "mean_pool"

    @property
    def has_classifier(self) -> bool:
        return self.head == "model"

    def describe(self, base: str | None, seed: int) -> str:
        source = base if self.init == "pretrained" else f"random weights, seed {seed}"
        return f"{source}, head {self.head}, {self.dtype}"

    def notes(self, num_scores: int) -> list[str]:
        from fibec_ray.models.architecture import notes

        return notes(self, num_scores)

    def prepared_folder(self, seed: int, num_scores: int, cache_dir: Path) -> Path:
        from fibec_ray.models.backbone import prepared_folder

        return prepared_folder(self, seed, num_scores, cache_dir)

    def prepare(self, seed: int, num_scores: int, cache_dir: Path) -> Path:
        from fibec_ray.models.backbone import prepare

        return prepare(self, seed, num_scores, cache_dir)

    def fingerprint(self, base: Path | None) -> str:
        from fibec_ray.models.base_cache import fingerprint

        return "" if base is None else fingerprint(base)

    def find_products(self, rows: int, threads: int, cache_dir: Path) -> Products:
        from fibec_ray.models.product_choice import kept_choice

        return kept_choice(self, rows, threads, cache_dir)

    def open_base(self, folder: Path) -> Any:
        from fibec_ray.models.backbone import open_base

        return open_base(self, folder)

    def _model_spec(self, request: ModelRequest) -> ModelSpec:
        from fibec_ray.models.torch_model import ModelSpec

        return ModelSpec(
            self,
            request.peft,
            request.answers,
            request.seed,
            request.shape,
            request.products,
            request.computes_on,
        )

    def local_folder(self) -> Path | None:
        if self.init != "pretrained" or self.name is None or self.name in PACKAGED:
            return None
        path = Path(self.name).expanduser()
        return path.resolve() if path.is_dir() else None

    def reference(self) -> str | None:
        from fibec_ray.models.architecture import hub_id

        if self.init != "pretrained":
            return None
        here = self.local_folder()
        return str(here) if here else hub_id(self.name or "minilm")

    def public_source(self) -> dict[str, str] | None:
        from fibec_ray.models.packaged import PACKAGED

        reference = self.reference()
        if reference is None or self.name in PACKAGED:
            return None
        revision = self.revision if self.local_folder() is None else None
        return {"pretrained": reference, **({} if revision is None else {"revision": revision})}

    def found_at(self, home: Path, base: str | None, base_path: str | None, place: str) -> Self:
        quantised = self.backend == "qlora" and place.startswith("cuda")
        spec = self.model_copy(update={"backend": "qlora" if quantised else "auto", "checkpointing": False})
        if spec.init != "pretrained":
            if base is not None:
                raise ModelError(f"--base {base}: has no effect, because the backbone has random weights; leave it out")
            return spec
        if base is not None:
            return spec.with_other_base(base)
        if base_path is None:
            return spec
        for path in (Path(spec.name or "").expanduser(), home / base_path):
            if path.is_dir():
                return spec.model_copy(update={"name": str(path)})
        raise ModelError(
            f"{home}: its base model is not here (neither {home / base_path} nor {spec.name}); give the folder of "
            "the base with --base DIR (in Python load(RUN, base=DIR))"
        )

    def with_other_base(self, base: str) -> Self:
        """The backbone with the weights of a hub id or folder."""
        return self.model_copy(update={"name": base, "revision": None})

    def saved_whole(self, home: Path) -> Self:
        update = {"init": "pretrained", "name": str(home), "revision": None, "config": None, "backend": "plain"}
        return self.model_copy(update=update)

    def exact(self) -> Self:
        return self.model_copy(update={"dtype": "float32"})
