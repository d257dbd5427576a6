"""URLs with credentials are refused wherever they stand in a file, and never repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from fibec_ray.config.load import load_experiment
from fibec_ray.errors import UserError
from fibec_ray.sweeps.load import load_sweep

URL = "https://me:hunter2@example.org/x"
SETTINGS = ["fleet: {kind: ray, address: 'URL'}", "name: 'URL'", "data: {labels: 'URL'}", "method: 'URL'", "'URL': 1"]


@pytest.mark.parametrize("text", SETTINGS)
def test_an_experiment_with_a_secret_is_refused_and_the_secret_is_not_said(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text.replace("URL", URL))
    with pytest.raises(UserError, match="the URL has credentials before its @") as caught:
        load_experiment(path)
    assert "hunter2" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("place", ["config", "reference", "variant", "override"])
def test_a_sweep_with_a_secret_is_refused_and_the_secret_is_not_said(place: str, tmp_path: Path) -> None:
    urls = {name: URL if name == place else plain for name, plain in {"config": "run.yaml", "reference": "a"}.items()}
    variant, override = URL if place == "variant" else "a", f"data.path={URL}" if place == "override" else "seed=1"
    path = tmp_path / "sweep.yaml"
    lines = [f"config: '{urls['config']}'", "seeds: [0]", f"reference: '{urls['reference']}'"]
    path.write_text("\n".join([*lines, f"variants: {{'{variant}': ['{override}']}}"]))
    (tmp_path / "run.yaml").write_text(
        "rounds: 1\ntask: digits\nmethod: fedavg\nbackbone: {kind: mlp}\nnum_devices: 2\n"
    )
    with pytest.raises(UserError, match="the URL has credentials before its @") as caught:
        load_sweep(path, [])
    assert "hunter2" not in str(caught.value)
