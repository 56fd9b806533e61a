"""A recipe: one TOML file = one reproducible run."""

from pydantic import BaseModel


class Recipe(BaseModel):
    """Placeholder for the assembled sections; completed with the stages."""

    name: str
    seed: int = 0
