"""What every gradient-trained step shares: examples, batches, loss, schedule, loop, checkpoints.

Why an own loop and not `transformers.Trainer`: every stage must end with the same numbers when it
is killed at any moment. Trainer's checkpoints are folders that a kill can leave half-written (and a
resume then picks up), hold pickles, and keep RNG states that depend on how far a data loader had
read ahead. Here the state of a run is its step number: data order and dropout are functions of
(seed, step), and a checkpoint is one safetensors file put in place atomically. The same 150 lines
train the base model, single embedding rows, and the recommender.
"""
