"""The README.md beside a saved adapter: what the model is, its scores, and how to load it.

It has the front matter of Hugging Face model cards, so the folder can be pushed to the hub as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from fibec_ray.config.experiment import Experiment
from fibec_ray.learning.run_totals import Row
from fibec_ray.runs.saved_model import SavedModel


def adapter_text(experiment: Experiment, about: SavedModel, row: Row, base: str | None) -> str:
    """README.md of a saved adapter, or of a model that was trained whole.

    row: of the last round; {} if it is not known. base: hub id or path of the base.
    """
    whole = not about.backbone.has_base or experiment.method.peft.trains_base
    meta = {
        "library_name": "fibec_ray" if not about.backbone.has_base else "transformers" if whole else "peft",
        "pipeline_tag": _pipeline(about),
        "tags": ["fibec-ray", "federated-learning", experiment.method.peft.kind],
        "base_model": base,
    }
    front = yaml.safe_dump({name: value for name, value in meta.items() if value}, sort_keys=False, allow_unicode=True)
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in _rows(experiment, about, row, base).items())
    code = _code(about, base, whole)
    alone = f"\nWithout fibec_ray:\n\n```python\n{code}\n```\n" if code else ""
    who = "" if about.device is None else f", device {about.device}"
    return f"""---
{front}---

# {about.name}{who}

A model trained by simulated federated learning with fibec_ray.

| | |
|---|---|
{table}

## Use it

```python
import fibec_ray

model = fibec_ray.load("PATH/TO/THIS/FOLDER")
print(model.predict(["..."]))
```
{alone}
{_limits(about)}
"""


def _rows(experiment: Experiment, about: SavedModel, row: Row, base: str | None) -> dict[str, str]:
    partition = experiment.partition.model_dump(mode="json")
    kind = partition.pop("kind")
    settings = ", ".join(f"{name} {value}" for name, value in partition.items() if value is not None)
    dealt = f"{experiment.num_devices} devices, partition {kind}" + (f" ({settings})" if settings else "")
    rows = {
        "backbone": about.backbone.describe(base, about.seed),
        "method": f"{about.method}, {_peft(about.peft)}",
        "data": f"{experiment.task.name}: {dealt}",
        "rounds": f"{about.round} of {experiment.cohort_size} devices each",
        "score": _score(about, row, experiment.task.metric),
        "seed": str(about.seed),
        "date": about.created[:10],
        "versions": ", ".join(
            f"{name} {about.versions[name]}"
            for name in ("fibec_ray", "torch", "transformers", "peft")
            if name in about.versions
        ),
    }
    if about.label_names:
        rows["classes"] = ", ".join(about.label_names[:20]) + (" ..." if len(about.label_names) > 20 else "")
    return {name: value for name, value in rows.items() if value}


def _peft(peft: Mapping[str, Any]) -> str:
    shown = [
        f"{name} {peft[name]}" for name in ("r", "alpha", "num_tokens", "bottleneck") if peft.get(name) is not None
    ]
    return f"{peft['kind']}" + (f" ({', '.join(shown)})" if shown else "")


def _score(about: SavedModel, row: Row, metric: str) -> str:
    """Of the global model on the test set, and the mean of devices' own models on their test rows."""
    if about.device is not None:
        return ""
    found = []
    for whose in ("global", "personal"):
        names = {"accuracy": f"{whose}_accuracy", "loss": f"{whose}_loss"}
        if metric != "accuracy":
            names = {metric: f"{whose}_metric", **names}
        values = [f"{what} {row[name]:.4f}" for what, name in names.items() if row.get(name) is not None]
        if values:
            found.append(f"{whose}: {', '.join(values)}")
    return "; ".join(found)


def _pipeline(about: SavedModel) -> str | None:
    return about.backbone.pipeline(about.task.pipeline)


def _code(about: SavedModel, base: str | None, whole: bool) -> str:
    auto = about.backbone.transformers_class
    if auto is None or base is None or "." in str(about.peft["kind"]):
        return ""
    if whole:
        return f'from transformers import {auto}\n\nmodel = {auto}.from_pretrained("PATH/TO/THIS/FOLDER")'
    if (auto_peft := about.backbone.auto_peft_class) is not None:
        return (
            f"from peft import {auto_peft}\n\n"
            f"model = {auto_peft}.from_pretrained(\n"
            f'    "PATH/TO/THIS/FOLDER", num_labels={about.answers.num_scores}, ignore_mismatched_sizes=True\n)'
        )
    classes = f", num_labels={about.answers.num_scores}, ignore_mismatched_sizes=True"
    extra = classes if about.backbone.has_classifier else ""
    return (
        f"from peft import PeftModel\nfrom transformers import {auto}\n\n"
        f'base = {auto}.from_pretrained("{base}"{extra})\n'
        'model = PeftModel.from_pretrained(base, "PATH/TO/THIS/FOLDER")'
    )


def _limits(about: SavedModel) -> str:
    length = f"Texts longer than {about.max_length} tokens are cut. " if about.task.reads == "text" else ""
    return (
        f"{length}The score is that of a simulation on one test set; test the model on your own data before using it."
    )


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")


_TEXTS = """import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

folder = "PATH/TO/THIS/FOLDER"
tokenizer, encoder = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
head = load_file(f"{folder}/head.safetensors")
batch = tokenizer(["..."], padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
with torch.no_grad():
    states, real = encoder(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(2)
"""
_IMAGES = """import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

folder = "PATH/TO/THIS/FOLDER"
processor, encoder = AutoImageProcessor.from_pretrained(folder, backend="pil"), AutoModel.from_pretrained(folder).eval()
head = load_file(f"{folder}/head.safetensors")
batch = processor([Image.open("...").convert("RGB")], return_tensors="pt")
with torch.no_grad():
    states = encoder(**batch).last_hidden_state
places = states.flatten(2).mT if states.dim() == 4 else states
"""
MEAN_POOLS: Mapping[tuple[str, str], str] = {
    ("text", "sample"): _TEXTS + 'logits = (states * real).sum(1) / real.sum(1) @ head["weight"].T + head["bias"]\n',
    ("text", "token"): _TEXTS + 'logits = states @ head["weight"].T + head["bias"]\n',
    ("image", "sample"): _IMAGES + 'logits = places.mean(1) @ head["weight"].T + head["bias"]\n',
}
"""Python that uses an encoder and our own linear head, by what a task reads and where its scores are."""


def merged_text(about: SavedModel) -> str:
    """README.md of a merged model."""
    auto = about.backbone.transformers_class
    code = f'from transformers import {auto}\n\nmodel = {auto}.from_pretrained("PATH/TO/THIS/FOLDER")'
    if about.backbone.adds_head:
        names = list(about.label_names)
        code = MEAN_POOLS[about.task.reads, about.answers.readout] + about.task.code_for_scores
        code = code.replace("MAX_LENGTH", str(about.max_length)).replace("LABELS", repr(names))
    return f"""# {about.name}

A plain transformers model in float32: the adapter ({about.peft["kind"]}) is merged into the base. Method
{about.method}, task {about.task.name}, {about.round} rounds, {about.created[:10]}.

```python
{code}
```
"""
