"""Sources -> uint8 images -> label budget."""

from semisup.data.budget import LabelBudget, draw_budget, parse_labels
from semisup.data.image_data import ImageData, channel_statistics
from semisup.data.rows import is_mapped, read_ahead, take
from semisup.data.sources import SOURCES, load_data

__all__ = [
    "SOURCES",
    "ImageData",
    "LabelBudget",
    "channel_statistics",
    "draw_budget",
    "is_mapped",
    "load_data",
    "parse_labels",
    "read_ahead",
    "take",
]
