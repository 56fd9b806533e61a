"""The fixed text around what changes in a prompt, as token ids: plain, or in a model's chat form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from service.bundle import ContextFrame, PromptTemplate
from training.base_model.text import encode_plain
from training.errors import TrainingError
from training.grounding.config import PromptConfig

_MARK = "@@HERE@@"


@dataclass(frozen=True)
class Frame:
    """Text before and after the changing part.

    Attributes:
        before_ids, after_ids: token ids.
        before_text, after_text: the same for people.
    """

    before_ids: tuple[int, ...]
    after_ids: tuple[int, ...]
    before_text: str
    after_text: str


def plain_frame(tokenizer: Any, before: str, after: str) -> Frame:
    """The model's start token and the plain text."""
    start = start_token_id(tokenizer)
    before_ids, after_ids = encode_plain(tokenizer, [before, after])
    start_ids = () if start is None else (start,)
    return Frame((*start_ids, *before_ids), tuple(after_ids), before, after)


def chat_frame(tokenizer: Any, before: str, after: str) -> Frame:
    """One user turn around the changing part, up to where the assistant's answer begins.

    Thinking is switched off where the template knows it (Qwen3): the answer must be the very next
    token.

    Raises:
        TrainingError: the model's chat template drops or repeats what the user says.
    """
    turns = [{"role": "user", "content": before + _MARK + after}]
    text = tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    head, *tails = text.split(_MARK)
    if len(tails) != 1:
        raise TrainingError(
            "the model's chat template does not repeat the user's words exactly once; "
            "use prompt.style = 'sequence'"
        )
    return Frame(
        # Here the control tokens of the template must be read as such.
        tuple(tokenizer.encode(head, add_special_tokens=False)),
        tuple(tokenizer.encode(tails[0], add_special_tokens=False)),
        head,
        tails[0],
    )


def start_token_id(tokenizer: Any) -> int | None:
    """What a text begins with: BOS, or the end-of-text token that separated texts in pretraining."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def is_chat(config: PromptConfig, tokenizer: Any) -> bool:
    """Whether prompts are chat turns.

    Raises:
        TrainingError: chat is asked for, but the model has no chat template.
    """
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if config.style == "chat" and not has_template:
        raise TrainingError(
            "prompt.style = 'chat', but the base model has no chat template; use 'sequence' or 'auto'"
        )
    return has_template and config.style != "sequence"


def make_prompt(config: PromptConfig, tokenizer: Any, history_limit: int) -> PromptTemplate:
    """The prompt that fine-tuning learns and the service speaks."""
    context = _context_frame(config, tokenizer) if config.context_share else None
    if not is_chat(config, tokenizer):
        frame = plain_frame(tokenizer, "", "")
        return PromptTemplate(
            style="sequence",
            history_limit=history_limit,
            prefix_token_ids=frame.before_ids,
            context=context,
        )
    frame = chat_frame(tokenizer, config.instruction + "\n", "")
    return PromptTemplate(
        style="chat",
        history_limit=history_limit,
        prefix_token_ids=frame.before_ids,
        separator_token_ids=tuple(encode_plain(tokenizer, [config.separator])[0]),
        suffix_token_ids=frame.after_ids,
        prefix_text=frame.before_text,
        suffix_text=frame.after_text,
        context=context,
    )


def _context_frame(config: PromptConfig, tokenizer: Any) -> ContextFrame:
    before, after = encode_plain(tokenizer, [config.context_before, config.context_after])
    return ContextFrame(
        before_token_ids=tuple(before),
        after_token_ids=tuple(after),
        max_tokens=config.max_context_tokens,
        before_text=config.context_before,
        after_text=config.context_after,
    )
