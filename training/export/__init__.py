"""Write the bundle: everything the service needs, with a model card."""

from training.export.config import ExportConfig

__all__ = ["ExportConfig"]
