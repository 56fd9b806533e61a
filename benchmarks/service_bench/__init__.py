"""Parts of `benchmarks/service_load.py`: the service's process, the generator, and what is measured."""
