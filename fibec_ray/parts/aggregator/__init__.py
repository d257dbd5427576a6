"""The aggregator axis: how the server combines the updates of a round."""

from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.aggregator.fed_sb import FedSb
from fibec_ray.parts.aggregator.feddyn import FedDyn
from fibec_ray.parts.aggregator.fedfisher import FedFisher
from fibec_ray.parts.aggregator.fedrpca import FedRpca
from fibec_ray.parts.aggregator.fipa import Fipa
from fibec_ray.parts.aggregator.fisher_merging import FisherMerging
from fibec_ray.parts.aggregator.mean import Mean
from fibec_ray.parts.aggregator.moves_base import FedExLora, FedMomentum
from fibec_ray.parts.aggregator.near_products import FloraNa, LoraFair
from fibec_ray.parts.aggregator.nova import Nova
from fibec_ray.parts.aggregator.over_factors import FlexLora, Flora, HetLora
from fibec_ray.parts.aggregator.peptao import PepTao
from fibec_ray.parts.aggregator.robust import Krum, Median, TrimmedMean
from fibec_ray.parts.aggregator.same_products import FedRotLora, FedSvd
from fibec_ray.parts.aggregator.server_optimisers import Adagrad, Adam, Momentum, Yogi

AGGREGATORS: dict[str, type[Aggregator]] = {
    "mean": Mean,
    "momentum": Momentum,
    "adam": Adam,
    "yogi": Yogi,
    "adagrad": Adagrad,
    "nova": Nova,
    "median": Median,
    "trimmed_mean": TrimmedMean,
    "krum": Krum,
    "fisher_merging": FisherMerging,
    "fedfisher": FedFisher,
    "feddyn": FedDyn,
    "fipa": Fipa,
    "flexlora": FlexLora,
    "flora": Flora,
    "hetlora": HetLora,
    "fedex_lora": FedExLora,
    "fedmomentum": FedMomentum,
    "fedsvd": FedSvd,
    "fedrot_lora": FedRotLora,
    "lora_fair": LoraFair,
    "flora_na": FloraNa,
    "fedrpca": FedRpca,
    "fed_sb": FedSb,
    "peptao": PepTao,
}
