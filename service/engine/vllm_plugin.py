"""The vLLM plugin: makes vLLM know the models that answer with a beam search.

vLLM runs `register` in every one of its processes (entry point group `vllm.general_plugins`), also
in those that have nothing to do with this project, so it registers names and two small functions only: the
model classes are imported by the process that loads one.
"""

from __future__ import annotations

import logging

from service.engine.vllm_version import SUPPORTED_VLLM

logger = logging.getLogger(__name__)

# Architecture in a bundle's config.json -> the class in vllm_model.py that serves it by pooling.
# Qwen2 and Mistral have the same modules as Qwen3 and Llama in vLLM 0.32.
POOLING_CLASSES = {
    "LlamaForCausalLM": "GtirecLlamaForCausalLM",
    "MistralForCausalLM": "GtirecMistralForCausalLM",
    "Qwen2ForCausalLM": "GtirecQwen2ForCausalLM",
    "Qwen3ForCausalLM": "GtirecQwen3ForCausalLM",
}


def register() -> None:
    """Register the models with vLLM. Safe to call more than once; never raises for another vLLM."""
    import vllm
    from vllm import ModelRegistry

    if not vllm.__version__.startswith(f"{SUPPORTED_VLLM}."):
        logger.warning(
            "gti-rec is written for vLLM %s.x, not %s: its models are not registered",
            SUPPORTED_VLLM,
            vllm.__version__,
        )
        return
    from service.engine import vllm_norms

    vllm_norms.register()
    known = ModelRegistry.get_supported_archs()
    for name in POOLING_CLASSES.values():
        if name not in known:
            ModelRegistry.register_model(name, f"service.engine.vllm_model:{name}")


def register_class(architecture: str) -> None:
    """Register the class that serves an architecture itself, not its name.

    For the process that starts an engine: given a name, vLLM inspects the class in a fresh Python
    process, which took 12 s of CPU time against 0.9 s for importing it here (vLLM 0.32.0).
    """
    from vllm.model_executor.models.registry import ModelRegistry, _RegisteredModel

    from service.engine import vllm_model

    name = POOLING_CLASSES[architecture]
    ModelRegistry.models[name] = _RegisteredModel.from_model_cls(getattr(vllm_model, name))
