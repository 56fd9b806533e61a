"""Types that recipe sections share. No torch here: a recipe is checked in milliseconds."""

from typing import Literal

Precision = Literal["auto", "fp32", "bf16"]
