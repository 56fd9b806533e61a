"""The language model everything starts from: loaded from a hub or a path, or made from the items' text."""
