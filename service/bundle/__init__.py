"""THE CONTRACT between training and serving: manifest, prompt, hashes, reader and writer."""

from service.bundle.context_reader import ContextReader
from service.bundle.item_prior import ItemPrior, Relation
from service.bundle.manifest import Level, Manifest
from service.bundle.prompt import ContextFrame, PromptTemplate
from service.bundle.reader import Bundle, load_bundle
from service.bundle.writer import write_bundle

__all__ = [
    "Bundle",
    "ContextFrame",
    "ContextReader",
    "ItemPrior",
    "Level",
    "Manifest",
    "PromptTemplate",
    "Relation",
    "load_bundle",
    "write_bundle",
]
