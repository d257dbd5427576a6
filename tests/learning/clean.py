"""Mean losses of saved adapters, with transformers and peft alone; test_clean_process.py runs it as a process.

argv: a JSON file, a list of {adapter, head, samples, words}; prints a JSON list of losses.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from peft import AutoPeftModel, AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from safetensors.torch import load_file

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()


@torch.no_grad()
def loss_of(adapter: str, head: str, samples: str, words: list[int]) -> tuple[float, list[str]]:
    data = load_file(samples)
    inputs = {name: data[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in data}
    rows, names = torch.arange(len(data["labels"])), []
    if head == "model":
        id2label = json.loads((Path(adapter) / "labels.json").read_text())["id2label"]
        labels = {int(i): name for i, name in id2label.items()}
        model = AutoPeftModelForSequenceClassification.from_pretrained(
            adapter, id2label=labels, ignore_mismatched_sizes=True, pad_token_id=0
        ).eval()
        names = [model.config.id2label[i] for i in range(model.config.num_labels)]
        logits, targets = model(**inputs).logits, data["labels"]
    elif head == "mean_pool":
        model = AutoPeftModel.from_pretrained(adapter).eval()
        own, real = load_file(Path(adapter) / "head.safetensors"), inputs["attention_mask"].unsqueeze(2)
        pooled = (model(**inputs).last_hidden_state * real).sum(1) / real.sum(1)
        logits, targets = pooled @ own["weight"].T + own["bias"], data["labels"]
    else:
        auto = AutoPeftModel if head == "masked_lm" else AutoPeftModelForCausalLM
        model = auto.from_pretrained(adapter).eval()
        logits, targets = model(**inputs).logits[rows, data["answer_at"]], torch.tensor(words)[data["labels"]]
    return float(torch.nn.functional.cross_entropy(logits, targets)), names


assert not any(name.startswith("fibec_ray") for name in sys.modules)
print(json.dumps([loss_of(**run) for run in json.loads(Path(sys.argv[1]).read_text())]))
