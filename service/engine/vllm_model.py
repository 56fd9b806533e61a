"""vLLM's own models, answering a pooling request with a constrained beam search.

Loaded by name from vllm_plugin.py, in the process that runs the model.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM

from service.engine.vllm_pooler import BeamSearchPooler


class AnswersWithBeams:
    """Mixed in before a causal LM: its pooler decodes; its forward pass tells the pooler the step."""

    is_pooling_model: ClassVar[bool] = True
    pooler: BeamSearchPooler

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self.pooler = BeamSearchPooler(self, vllm_config)  # type: ignore[arg-type]

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> Any:
        self.pooler.observe(get_forward_context().attn_metadata)
        return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds)  # type: ignore[misc]


class GtirecLlamaForCausalLM(AnswersWithBeams, LlamaForCausalLM):
    """Llama."""


class GtirecMistralForCausalLM(AnswersWithBeams, MistralForCausalLM):
    """Mistral with full attention."""


class GtirecQwen2ForCausalLM(AnswersWithBeams, Qwen2ForCausalLM):
    """Qwen2 and Qwen2.5."""


class GtirecQwen3ForCausalLM(AnswersWithBeams, Qwen3ForCausalLM):
    """Qwen3."""
