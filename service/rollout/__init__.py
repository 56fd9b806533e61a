"""Which bundles are served, and how that changes: activation, rollback, and experiments with two at once."""

from service.rollout.activation import Activation, Activator
from service.rollout.beside import Beside
from service.rollout.experiment import Experiment, Seat
from service.rollout.experiments import Experiments
from service.rollout.follower import Follower
from service.rollout.serving import Current, Serving
from service.rollout.shelf import BundleShelf
from service.rollout.tally import Tally

__all__ = [
    "Activation",
    "Activator",
    "Beside",
    "BundleShelf",
    "Current",
    "Experiment",
    "Experiments",
    "Follower",
    "Seat",
    "Serving",
    "Tally",
]
