"""The aggregator axis."""

from fibec_ray.parts.aggregator.base import Aggregator

AGGREGATORS: dict[str, type[Aggregator]] = {"mean": Aggregator}
