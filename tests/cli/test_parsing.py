"""Configs by name, settings written as options, and where an experiment is found without a name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fibec_ray.cli.main import main
from fibec_ray.config.aliases import ALIASES, SECTIONS
from fibec_ray.config.experiment import Experiment
from fibec_ray.config.load import load_experiment
from fibec_ray.config.names import config_folder


def shown(capsys: Any, *arguments: str) -> dict[str, Any]:
    """What `fibec-ray show` prints for these arguments."""
    assert main(["show", *arguments]) == 0
    found: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return found


def test_packaged_configs_are_called_by_name(capsys: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "trec"):
        assert shown(capsys, name)["name"] == name


def test_a_file_in_the_working_folder_comes_before_a_packaged_name(
    capsys: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (config_folder() / "quickstart.yaml").read_text()
    (tmp_path / "trec.yaml").write_text(text.replace("name: quickstart", "name: mine"))
    assert shown(capsys, "trec")["name"] == "mine"


def test_without_a_name_the_folder_has_the_experiment(capsys: Any, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "experiment.yaml").write_text((config_folder() / "quickstart.yaml").read_text())
    assert shown(capsys, str(tmp_path))["rounds"] == 12
    monkeypatch.chdir(tmp_path)
    assert shown(capsys)["rounds"] == 12
    assert shown(capsys, "rounds=3", "--num-devices", "7")["rounds"] == 3


def test_an_empty_folder_says_how_to_begin(capsys: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "rounds=3"]) == 2
    assert "this folder has no experiment.yaml; name a config" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [["--rounds", "3"], ["--rounds=3"], ["rounds=3"], ["--num-rounds", "3"], ["--rounds", "9", "rounds=3"]],
    ids=" ".join,
)
def test_settings_may_be_written_as_options(options: list[str], capsys: Any) -> None:
    assert shown(capsys, "quickstart", *options)["rounds"] == 3


def test_deep_settings_as_options(capsys: Any) -> None:
    found = shown(capsys, "quickstart", "--local.batch-size", "4", "--method", "fedavg", "--local.momentum", "-0")
    assert found["local"]["batch_size"] == 4 and found["method"]["name"] == "fedavg"


def test_sections_are_the_keys_of_an_experiment() -> None:
    assert tuple(Experiment.model_fields) == SECTIONS


def test_a_missing_file_names_the_nearest(capsys: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text("")
    assert main(["run", "mine.yaml"]) == 2
    assert "did you mean 'my.yaml'?" in capsys.readouterr().err
    assert main(["run", "configs/trec.yaml"]) == 2
    assert "for the packaged config, write trec" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["lr=0.25", "--lr=0.25", "learning_rate=0.25", "--learning-rate=0.25"])
def test_short_names_of_settings(text: str, capsys: Any) -> None:
    assert shown(capsys, "quickstart", text)["local"]["learning_rate"] == 0.25


@pytest.mark.parametrize(
    ("flag", "dtype"), [("bf16=true", "bfloat16"), ("--fp32", "float32"), ("bf16=false", "float32")]
)
def test_flags_of_the_dtype(flag: str, dtype: str, capsys: Any) -> None:
    assert shown(capsys, "quickstart", "method=fedavg", flag)["backbone"]["dtype"] == dtype


VALUES = {
    "method": "fedprox", "task": "sst2", "backbone": "tiny-llama", "local.optimizer": "sgd", "local.momentum": 0.5,
    "backbone.dtype": "bfloat16", "method.peft.target_modules": ["query"], "data.max_length": 9, "cohort_size": 3,
    "backbone.checkpointing": True, "method.peft.dropout": 0.5,
    "fleet.device": "cpu",
}  # fmt: skip


@pytest.mark.parametrize("name", ALIASES)
def test_every_alias_stands_for_a_setting(name: str) -> None:
    key = ALIASES[name]
    value = VALUES.get(key, 7)
    others = ["method=fedavg", *(["local.optimizer=sgd"] if key == "local.momentum" else [])]
    quickstart = config_folder() / "quickstart.yaml"
    short, long = (load_experiment(quickstart, [*others, f"{text}={json.dumps(value)}"]) for text in (name, key))
    assert short == long != load_experiment(quickstart, others)
