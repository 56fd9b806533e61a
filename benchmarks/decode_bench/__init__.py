"""Parts of `benchmarks/decode.py`: the material, the engines in processes of their own, the report."""
