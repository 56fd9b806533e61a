"""Make a semantic-ID recommendation model: items -> semantic IDs -> grounding -> fine-tuning -> bundle."""
