"""The figures of a run's page, in order, grouped into cards. A card shows one of its figures at a time."""

from __future__ import annotations

from collections.abc import Sequence

from fibec_ray.analysis import curves
from fibec_ray.analysis.device_figures import durations, shard_sizes, spread_curves
from fibec_ray.analysis.figure import Anchors, Card, Curve, Figure, Series
from fibec_ray.analysis.matrices import device_heats, layer_heats
from fibec_ray.analysis.speed_classes import class_curve
from fibec_ray.analysis.tables import RunTables, latest_layers
from fibec_ray.analysis.timeline import timeline


def cards_of(tables: RunTables, anchors: Anchors, metric: str | None = None) -> list[Card]:
    """Make a card for every figure that the log has numbers for. metric: name of the task's own metric."""
    found = [
        _card("Scores", curves.accuracy_curves(tables, anchors)),
        _card("Scores", curves.metric_curves(tables, metric, anchors)),
        *(_card("Scores", group) for group in curves.further_curves(tables)),
        _card("Scores", spread_curves(tables)),
        _card("Scores", curves.loss_curves(tables, metric)),
        _card("Scores", curves.perplexity_curves(tables)),
        _card("Scores", [curves.training_loss(tables, metric)]),
        *(_card("Curriculum", [curve]) for curve in curves.curriculum_curves(tables)),
        _card("Layers and masks", [_sensitivity(tables)]),
        _card("Layers and masks", layer_heats(tables)),
        *(_card("Layers and masks", [curve]) for curve in curves.mask_curves(tables)),
        _card("Devices", device_heats(tables)),
        _card("Devices", [found] if (found := timeline(tables)) else []),
        _card("Devices", [durations(tables)]),
        _card("Devices", [class_curve(tables)]),
        *(_card("Devices", [curve]) for curve in curves.schedule_curves(tables)),
        _card("Devices", [shard_sizes(tables)]),
    ]
    return [card for card in found if card.figures]


def figures_of(cards: Sequence[Card]) -> list[Figure]:
    """All figures of the cards, in order."""
    return [figure for card in cards for figure in card.figures]


def _card(section: str, figures: Sequence[Figure]) -> Card:
    return Card(section, tuple(figure for figure in figures if not isinstance(figure, Curve) or figure.series))


def _sensitivity(tables: RunTables) -> Curve:
    """Bars of layer sensitivity, with the shared layers in another colour."""
    layers = [layer for layer in latest_layers(tables) if layer.sensitivity is not None]
    groups = (("shared (sent to the server)", True), ("personal (stays on the device)", False))
    series = [
        Series(label, tuple((entry.layer, entry.sensitivity or 0.0) for entry in layers if entry.shared == shared))
        for label, shared in groups
    ]
    return Curve(
        "layer_sensitivity",
        "Layer sensitivity",
        "Sensitivity of each layer, mean over devices. The method uses it to choose the layers to share.",
        "layer (0 is nearest the input)",
        "sensitivity (method's own unit)",
        tuple(entry for entry in series if entry.points),
        kind="bars",
        whole_x=True,
    )
