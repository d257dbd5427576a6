"""The backbone that a federation adapts: a transformer from transformers, or one with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from fibec_ray.encoder import EncodeMode, Encoder, Reads
from fibec_ray.errors import ModelError
from fibec_ray.model_types import BatchForm
from fibec_ray.models.base import AnyBackbone, BuiltModel, Dtype, ModelRequest, SizedModel
from fibec_ray.models.settings import AUTO_CLASSES, BackboneSettings, Backend, Head

if TYPE_CHECKING:
    from fibec_ray.models.torch_model import ModelSpec

ENCODE_MODES: dict[Head, EncodeMode] = {
    "mean_pool": "plain",
    "model": "plain",
    "masked_lm": "masked",
    "causal_lm": "causal",
}


class Backbone(BackboneSettings, AnyBackbone, frozen=True):
    """The frozen base model.

    head: mean_pool (linear classifier on the mean of the last hidden states), model (the classification head that
    transformers gives the architecture), masked_lm or causal_lm (verbaliser: the task's label words at the mask token,
    or after the prompt; only the adapter is trained).
    """

    has_base: ClassVar[bool] = True
    lacks: ClassVar[tuple[Literal["transformer"], ...]] = ()
    local_settings: ClassVar[tuple[str, ...]] = ("name", "tokenizer")

    @property
    def title(self) -> str:
        return "a pretrained backbone"

    @property
    def reads(self) -> Reads:
        return "text"

    @property
    def encode_mode(self) -> EncodeMode:
        return ENCODE_MODES[self.head]

    @property
    def writes_text(self) -> bool:
        return self.head == "causal_lm"

    @property
    def scores_by(self) -> str:
        return f"backbone.head {self.head}"

    @property
    def base_dtype(self) -> Dtype:
        return self.dtype

    @property
    def base_backend(self) -> Backend:
        return self.backend

    @property
    def recomputes(self) -> bool:
        return self.checkpointing

    @property
    def transformers_class(self) -> str:
        return AUTO_CLASSES[self.head]

    @property
    def adds_head(self) -> bool:
        return self.head == "mean_pool"

    @property
    def has_classifier(self) -> bool:
        return self.head == "model"

    def describe(self, base: str | None, seed: int) -> str:
        source = base if self.init == "pretrained" else f"random weights, seed {seed}"
        return f"{source}, head {self.head}, {self.dtype}"

    def check(self, writes_text: bool = False) -> None:
        from fibec_ray.models.architecture import check_causal, check_supported

        check_supported(self)
        if writes_text:
            check_causal(self)

    def preprocessor(self) -> Any:
        from fibec_ray.models.backbone import load_tokenizer

        return load_tokenizer(self)

    def encoder(self, max_length: int, num_virtual: int = 0) -> Encoder:
        from fibec_ray.models.sizes import check_sizes

        tokenizer = self.preprocessor()
        num_embeddings = check_sizes(self, tokenizer, max_length, num_virtual)
        return Encoder(self.reads, tokenizer, self.encode_mode, max_length, num_embeddings=num_embeddings)

    def fit(self, sets: Sequence[Any], encoder: Encoder, words: Sequence[int] = ()) -> list[Any]:
        from fibec_ray.models.sizes import check_used, with_types

        check_used(sets, encoder, words)
        return with_types(self, sets)

    def takes_types(self, highest: int) -> bool:
        from fibec_ray.models.sizes import takes_types

        return takes_types(self, highest)

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

    def open_base(self, folder: Path) -> Any:
        from fibec_ray.models.backbone import open_base

        return open_base(self, folder)

    def build(
        self, request: ModelRequest, base: Any = None, device: str = "cpu", beside: int | None = None
    ) -> BuiltModel:
        from fibec_ray.models.torch_model import TorchModel

        return TorchModel(self._model_spec(request), base, device, beside)

    def outline(self, request: ModelRequest, form: BatchForm, num_blocks: int | None = None) -> SizedModel:
        from fibec_ray.models.outline import Outline

        return Outline(self._model_spec(request), form, num_blocks)

    def _model_spec(self, request: ModelRequest) -> ModelSpec:
        from fibec_ray.models.torch_model import ModelSpec

        return ModelSpec(self, request.peft, request.answers, request.seed)

    def local_folder(self) -> Path | None:
        if self.init != "pretrained" or self.name is None:
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
            return spec.model_copy(update={"name": base, "revision": None, "tokenizer": spec.tokenizer or base})
        if base_path is None:
            return spec
        for path in (Path(spec.name or "").expanduser(), home / base_path):
            if path.is_dir():
                return spec.model_copy(update={"name": str(path)})
        raise ModelError(
            f"{home}: its base model is not here (neither {home / base_path} nor {spec.name}); give the folder of "
            "the base with --base DIR (in Python load(RUN, base=DIR))"
        )

    def saved_whole(self, home: Path) -> Self:
        update = {"init": "pretrained", "name": str(home), "revision": None, "config": None, "backend": "plain"}
        return self.model_copy(update=update)

    def exact(self) -> Self:
        return self.model_copy(update={"dtype": "float32"})

    def with_preprocessor(self, home: Path) -> Self:
        saved = (home / TOKENIZER).is_file()
        return self.model_copy(update={"tokenizer": str(home)}) if saved else self


TOKENIZER = "tokenizer_config.json"
"""the file that says that a folder has a tokenizer"""
