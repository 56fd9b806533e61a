"""Bundle and options -> vLLM's engine arguments; refuses what an engine cannot serve correctly."""

from __future__ import annotations

from typing import Any

from service.bundle import Bundle
from service.engine.vllm_norms import PRIORITY
from service.engine.vllm_options import VllmOptions, WorkerSettings, model_config
from service.engine.vllm_plugin import POOLING_CLASSES
from service.errors import EngineError

LOGITS_PROCESSOR = "service.engine.vllm_logits_processor:TrieLogitsProcessor"
WORKER_EXTENSION = "service.engine.vllm_worker.CatalogueWorker"
GIB = 2**30


def pooling_arguments(bundle: Bundle, options: VllmOptions) -> dict[str, Any]:
    """Arguments of an engine that answers one pooling request per recommendation.

    Raises:
        EngineError: the model or an option does not fit this engine.
    """
    config = model_config(bundle)
    check_poolable(bundle.manifest.architecture, config, options)
    arguments = _common_arguments(bundle, options, config, default_num_seqs=16)
    arguments |= {
        "runner": "pooling",
        "hf_overrides": {"architectures": [POOLING_CLASSES[bundle.manifest.architecture]]},
    }
    if options.cache_reader == "stash":
        # Keys and values are caught as the prompt passes by, so it must pass whole, every time,
        # and through Python.
        arguments |= {
            "enable_prefix_caching": False,
            "enable_chunked_prefill": False,
            "enforce_eager": True,
        }
    return arguments


def logits_arguments(bundle: Bundle, options: VllmOptions) -> dict[str, Any]:
    """Arguments of an engine that scores one beam per request, masked by the trie."""
    arguments = _common_arguments(bundle, options, model_config(bundle), default_num_seqs=256)
    return arguments | {
        "runner": "generate",
        "logits_processors": [LOGITS_PROCESSOR],
        # The processor writes true log-probabilities into the logits; "processed_logprobs" would
        # renormalise them over the allowed children, which ranks differently.
        "logprobs_mode": "processed_logits",
        # No node of any catalogue has more children, and no beam asks for more scores.
        "max_logprobs": max(bundle.manifest.codebook_sizes),
    }


def check_poolable(architecture: str, config: dict[str, Any], options: VllmOptions) -> None:
    """Refuse models that the decoder inside the worker would run wrongly.

    Args:
        architecture: first entry of the config's `architectures`.
        config: the model's `config.json`.
        options: how it is to be run.

    Raises:
        EngineError: with the reason, and a pointer to `vllm_logits`.
    """
    reason = None
    layer_types = set(config.get("layer_types") or ["full_attention"])
    slides = config.get("use_sliding_window", architecture == "MistralForCausalLM")
    if architecture not in POOLING_CLASSES:
        reason = f"runs {', '.join(POOLING_CLASSES)}, not {architecture}"
    elif options.tensor_parallel_size > 1:
        reason = f"runs on one device, not {options.tensor_parallel_size}"
    elif layer_types != {"full_attention"} or (slides and config.get("sliding_window")):
        reason = f"decodes full attention only, this {architecture} has other layers"
    elif unknown := [key for key in ("dual_chunk_attention_config", "llama_4_scaling") if config.get(key)]:
        reason = f"does not know the attention variant {unknown[0]}"
    if reason is not None:
        raise EngineError(f"vllm_pooling {reason}; serve this bundle with engine=vllm_logits")


def _common_arguments(
    bundle: Bundle, options: VllmOptions, config: dict[str, Any], *, default_num_seqs: int
) -> dict[str, Any]:
    manifest = bundle.manifest
    max_model_len = manifest.prompt.max_tokens(manifest.num_levels) + manifest.num_levels
    positions = config.get("max_position_embeddings")
    if positions is not None and max_model_len > positions:
        raise EngineError(
            f"the longest prompt needs {max_model_len} positions, the model has {positions}; "
            "export the bundle with a smaller history_limit"
        )
    from vllm.platforms import current_platform

    is_cpu = current_platform.is_cpu()
    dtype = options.dtype if options.dtype != "auto" else "float32" if is_cpu else "bfloat16"
    max_num_seqs = options.max_num_seqs or default_num_seqs
    return {
        "model": str(bundle.model_dir.resolve()),
        "dtype": dtype,
        "seed": 0,
        "skip_tokenizer_init": True,  # prompts arrive as token ids
        "generation_config": "vllm",
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": options.max_num_batched_tokens or max(2048, max_model_len, max_num_seqs),
        "block_size": options.block_size,
        "enable_prefix_caching": True,
        "enable_chunked_prefill": True,
        "enforce_eager": not options.compile,
        "ir_op_priority": PRIORITY if is_cpu and not options.compile else {},
        "kv_cache_memory_bytes": int(options.cpu_kv_cache_gib * GIB) if is_cpu else None,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "tensor_parallel_size": options.tensor_parallel_size,
        "disable_log_stats": not options.stats,
        "worker_extension_cls": WORKER_EXTENSION,
        "additional_config": WorkerSettings.of(bundle, options).to_config(),
    }
