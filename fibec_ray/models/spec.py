"""The backbone that a federation adapts: a transformer from transformers, or one with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from fibec_ray.answers import Readout
from fibec_ray.encoder import EncodeMode, Encoder, Reads
from fibec_ray.model_types import BatchForm
from fibec_ray.models.base import Lack
from fibec_ray.models.built import BuiltModel, ModelRequest, SizedModel
from fibec_ray.models.pretrained import Pretrained
from fibec_ray.models.settings import BackboneSettings, Head

ENCODE_MODES: dict[Head, EncodeMode] = {
    "mean_pool": "plain",
    "model": "plain",
    "masked_lm": "masked",
    "causal_lm": "causal",
    "seq2seq": "seq2seq",
}


class Backbone(BackboneSettings, Pretrained, frozen=True):
    """The frozen base model.

    head: mean_pool (linear classifier on the mean of the last hidden states), model (the classification head that
    transformers gives the architecture), masked_lm or causal_lm (verbaliser: the task's label words at the mask token,
    or after the prompt; only the adapter is trained), seq2seq (an encoder-decoder: the encoder reads the prompt and the
    decoder writes the response). Tasks with responses in text take causal_lm or seq2seq.
    """

    local_settings: ClassVar[tuple[str, ...]] = ("name", "tokenizer")

    @property
    def title(self) -> str:
        return "an encoder-decoder" if self.head == "seq2seq" else "a pretrained backbone"

    @property
    def lacks(self) -> tuple[Lack, ...]:
        return ("one_stack", "position") if self.head == "seq2seq" else ()

    def unfit_for(self, readout: Readout) -> str | None:
        if self.head != "seq2seq" or readout == "response":
            return None
        return (
            "needs scores of another kind: backbone.head seq2seq writes a response to a prompt; choose a task with "
            "responses, such as task=instructions, or a backbone that is an encoder or a decoder"
        )

    @property
    def reads(self) -> Reads:
        return "text"

    @property
    def encode_mode(self) -> EncodeMode:
        return ENCODE_MODES[self.head]

    @property
    def writes_text(self) -> bool:
        return self.head in ("causal_lm", "seq2seq")

    def pipeline(self, task: str | None) -> str | None:
        return "text2text-generation" if self.head == "seq2seq" else task

    def check(self, writes_text: bool = False) -> None:
        from fibec_ray.models.architecture import check_causal, check_supported

        check_supported(self)
        if writes_text and self.head == "causal_lm":
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

    def build(
        self, request: ModelRequest, base: Any = None, device: str = "cpu", beside: int | None = None
    ) -> BuiltModel:
        from fibec_ray.models.seq2seq import Seq2SeqModel
        from fibec_ray.models.torch_model import TorchModel

        return (Seq2SeqModel if self.head == "seq2seq" else TorchModel)(self._model_spec(request), base, device, beside)

    def outline(self, request: ModelRequest, form: BatchForm, num_blocks: int | None = None) -> SizedModel:
        from fibec_ray.models.outline import Outline
        from fibec_ray.models.seq2seq_outline import Seq2SeqOutline

        return (Seq2SeqOutline if self.head == "seq2seq" else Outline)(self._model_spec(request), form, num_blocks)

    @property
    def auto_peft_class(self) -> str | None:
        return f"AutoPeft{self.transformers_class.removeprefix('Auto')}" if self.has_classifier else None

    def probe(self, preprocessor: Any) -> dict[str, Any]:
        import torch

        # One sample: classifiers of decoders may lack a pad token.
        ids = torch.arange(5, 5 + PROBE_TOKENS).unsqueeze(0)
        found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return found | ({"decoder_input_ids": ids} if self.head == "seq2seq" else {})

    def with_other_base(self, base: str) -> Self:
        return super().with_other_base(base).model_copy(update={"tokenizer": self.tokenizer or base})

    def with_preprocessor(self, home: Path) -> Self:
        saved = (home / TOKENIZER).is_file()
        return self.model_copy(update={"tokenizer": str(home)}) if saved else self


TOKENIZER = "tokenizer_config.json"
"""the file that says that a folder has a tokenizer"""
PROBE_TOKENS = 8
