"""Sources -> uint8 images -> label budget."""

from semisup.data.budget import LabelBudget, draw_budget, parse_labels
from semisup.data.image_data import ImageData, channel_statistics
from semisup.data.sources import SOURCES, load_data

__all__ = ["SOURCES", "ImageData", "LabelBudget", "channel_statistics", "draw_budget", "load_data", "parse_labels"]
