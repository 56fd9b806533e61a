"""Train the model that serves once more, on training and validation rows together."""
