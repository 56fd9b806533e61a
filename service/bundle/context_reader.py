"""Free text of a request as token ids: the same way in training and in serving.

Whatever a user writes is text: control tokens and SID tokens spelled in it are split like any other
letters, so no text can become one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from service.bundle.manifest import Level
from service.errors import BundleError

_TOKENIZER = "tokenizer.json"


class ContextReader:
    """Tokenizes free text.

    Args:
        tokenizer: the model's, with the SID tokens; its handling of special tokens is switched off.
        levels: token ranges of the SIDs.
    """

    def __init__(self, tokenizer: Tokenizer, levels: Sequence[Level]) -> None:
        tokenizer.encode_special_tokens = True  # read "<a_1>" as five letters
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._sid_ranges = [
            range(level.first_token_id, level.first_token_id + level.codebook_size) for level in levels
        ]

    @classmethod
    def open(cls, model_dir: Path, levels: Sequence[Level]) -> ContextReader:
        """Read a Hugging Face directory's tokenizer.json.

        Raises:
            BundleError: it is missing or damaged.
        """
        path = model_dir / _TOKENIZER
        if not path.is_file():
            raise BundleError(
                f"{path} is missing, and without it no free text can be read; export the bundle again from a "
                "model with a fast tokenizer"
            )
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise BundleError(f"{path} cannot be read ({error}); export the bundle again") from error
        return cls(tokenizer, levels)

    def token_ids(self, text: str) -> list[int]:
        """Token ids of a text, white space runs made single spaces; empty for an empty text."""
        ids = self._tokenizer.encode(" ".join(text.split()), add_special_tokens=False).ids
        return [token for token in ids if not any(token in sids for sids in self._sid_ranges)]
