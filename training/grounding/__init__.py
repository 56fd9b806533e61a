"""Give new SID tokens a meaning before fine-tuning: vocabulary, initialization, grounding, diagnostics."""
