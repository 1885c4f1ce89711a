"""Sections of a config become data sets."""

from lightning_cfg.config import build
from lightning_cfg.data.loaded import Loaded
from lightning_cfg.interfaces import DataSet, complete


def build_data(section: dict) -> DataSet:
    """The data set of a section; UserError where one of one's own is none."""
    made = build("lightning_cfg.data", section)
    if hasattr(made, "train_dataloader"):  # a LightningDataModule
        return Loaded(made, section["name"])
    return complete(made, DataSet, f"data {section['name']}", "shape", "num_classes")
