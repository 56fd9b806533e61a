"""Teach the grounded model to recommend: supervised fine-tuning on histories."""
