"""Items, histories and splits: everything later stages know about the data."""

from training.items.config import ItemsConfig
from training.items.dataset import Dataset

__all__ = ["Dataset", "ItemsConfig"]
