"""The section of Lightning's Trainer: its own keys, with the ranges that it does not say."""

from datetime import timedelta
from typing import Annotated

from lightning_cfg.config.domain import AtLeast, Between, NonNegative
from lightning_cfg.config.schema import Free, Keywords

# processes of a node: no node has more devices, and Lightning would start as many
Devices = Annotated[int, Between(-1, 1024)]
Time = Annotated[int, Between(0, 100_000_000)]  # in any of its units: what timedelta holds
Device = Annotated[int, Between(0, 1024)]

TrainerKeys = Annotated[
    dict,
    Keywords(
        "lightning.Trainer",
        {
            "accumulate_grad_batches": Annotated[int, AtLeast(1)],
            "devices": list[Device] | str | Devices,
            "fast_dev_run": Annotated[int, NonNegative] | bool,
            "max_steps": Annotated[int, AtLeast(1)],
            "max_time": str | timedelta | dict[str, Time] | None,
            "num_nodes": Annotated[int, Between(1, 100_000)],
        },
    ),
    Free,
]
