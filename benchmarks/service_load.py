"""What HTTP adds to the engine, how much one replica carries, and what happens at twice that.

python benchmarks/service_load.py --quick                      2 minutes, a random model of 20,000 items
python benchmarks/service_load.py --bundle runs/demo/bundle    10 minutes, a trained one
python benchmarks/service_load.py --soak 30                    30 minutes of everything: does memory grow?
python benchmarks/service_load.py --faults                     how soon it degrades, and how soon it is back

Open loop: requests leave at Poisson moments drawn beforehand, whether or not answers came, and every
latency counts from the moment the request was due, so that a stalled service cannot hide its stall
(coordinated omission). Generator, API and Redis share core 0, the engine's processes have core 1. Phases:
capacity (as many answers a second as come back with a full queue), livez (the floor: what a request costs
that does nothing), unloaded (a fifth of the capacity), overload (twice it). Prints a table, and one JSON
line last.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from service_bench import faults, load, soak
from service_bench.material import random_bundle


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="a bundle; default: a random model")
    parser.add_argument("--engine", default="vllm_pooling", help="vllm_pooling, vllm_logits or torch")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--beam-width", type=int, default=20)
    parser.add_argument("--inflight-rows", type=int, default=40, help="GTIREC_MAX_INFLIGHT_BEAM_ROWS")
    parser.add_argument("--queue-s", type=float, default=0.01, help="GTIREC_QUEUE_TIMEOUT_S")
    parser.add_argument("--seconds", type=float, default=240.0, help="length of a phase")
    parser.add_argument("--quick", action="store_true", help="2 minutes in all")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="steady load; memory every minute")
    parser.add_argument("--faults", action="store_true", help="kill and stop engine and Redis")
    options = parser.parse_args()
    mode = soak if options.soak else faults if options.faults else load
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        bundle = options.bundle or random_bundle(directory)
        try:
            mode.run(options, bundle, directory)
        except (SystemExit, KeyboardInterrupt):
            sys.stderr.write((directory / "service.log").read_text()[-3000:])
            raise


if __name__ == "__main__":
    main()
