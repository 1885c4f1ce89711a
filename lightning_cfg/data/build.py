"""Sections of a config become data sets."""

from lightning_cfg.config import build
from lightning_cfg.data.loaded import Loaded
from lightning_cfg.data.map_style import MapStyle, is_map_style
from lightning_cfg.interfaces import DataSet, complete


def build_data(section: dict) -> DataSet:
    """The data set of a section, which may be anyone's map-style Dataset; UserError for neither."""
    made = build("lightning_cfg.data", section)
    if hasattr(made, "train_dataloader"):  # a LightningDataModule
        return Loaded(made, section["name"])
    if is_map_style(made):
        made = MapStyle(of=made)
    return complete(made, DataSet, f"data {section['name']}", "shape", "num_classes")
