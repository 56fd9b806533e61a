"""What serving needs of the semantic-ID tokenizer: spelling, text encoder, codebooks."""
