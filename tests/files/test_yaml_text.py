"""YAML as runs write it: the text of `yaml.safe_dump`, whichever library makes it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from conftest import make_tiny

from fibec_ray.config.load import check
from fibec_ray.files.yaml_text import to_yaml

ODD: dict[str, Any] = {
    "name": "tré :smile:[lora] 'x' \n y 日本",
    "long": "a" * 100 + " b" * 60,
    "looks like something else": ["null", "1e3", "yes", "", "#a", "- b", "a: b", "tab\tx"],
    "numbers": [1e-7, float("inf"), 0, -1, True, None],
    "empty": [{}, []],
}


@pytest.mark.parametrize("value", [check(make_tiny("fibecfed"), "test").model_dump(mode="json"), ODD])
def test_it_is_the_text_of_safe_dump_and_loads_again(value: dict[str, Any]) -> None:
    text = to_yaml(value)
    assert text == yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    assert yaml.safe_load(text) == value
