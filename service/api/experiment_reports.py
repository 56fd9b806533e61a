"""What is known about changes of bundles and experiments, as models of the wire."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from service.api.experiment_models import (
    ActivationStatus,
    EventNumbers,
    ExperimentReport,
    Gain,
    VariantNumbers,
)
from service.rollout import Activation, Experiment
from service.rollout.statistics import Rate, difference, rate
from service.rollout.tally import ANSWERS, FALLBACKS, VARIANTS, Counts

Rates = dict[tuple[str, str], Rate | None]  # (variant, kind of event)


def status_of(activation: Activation) -> ActivationStatus:
    """How a change of bundles stands."""
    return ActivationStatus(
        bundle_id=activation.bundle_id,
        state=activation.state,
        detail=activation.detail,
        experiment_id=activation.experiment_id,
    )


def report_of(experiment: Experiment, counts: Counts | None) -> ExperimentReport:
    """An experiment with its numbers; None where they are not known."""
    rates = {} if counts is None else _rates(counts)
    gains = {kind: difference(rates["a", kind], rates["b", kind]) for _, kind in rates}
    return ExperimentReport(
        **experiment.model_dump(exclude={"started_at", "ended_at"}),
        started_at=datetime.fromtimestamp(experiment.started_at, UTC),
        ended_at=None if experiment.ended_at is None else datetime.fromtimestamp(experiment.ended_at, UTC),
        variants=None if counts is None else _variants(experiment, counts, rates),
        gains={
            kind: Gain(difference=gain[0], low=gain[1], high=gain[2])
            for kind, gain in gains.items()
            if gain is not None
        },
    )


def _rates(counts: Counts) -> Rates:
    return {
        (variant, kind): rate(counts.get(variant, ANSWERS), counts.get(variant, kind))
        for variant in VARIANTS
        for kind in counts.kinds
    }


def _variants(
    experiment: Experiment, counts: Counts, rates: Rates
) -> dict[Literal["a", "b"], VariantNumbers]:
    return {
        variant: VariantNumbers(
            bundle_id=experiment.a if variant == "a" else experiment.b,
            answers=int(counts.get(variant, ANSWERS).sum()),
            fallbacks=int(counts.get(variant, FALLBACKS).sum()),
            events={
                kind: _numbers(int(counts.get(variant, kind).sum()), rates[variant, kind])
                for kind in counts.kinds
            },
        )
        for variant in VARIANTS
    }


def _numbers(num_events: int, found: Rate | None) -> EventNumbers:
    if found is None:
        return EventNumbers(events=num_events, rate=None, low=None, high=None)
    return EventNumbers(events=num_events, rate=found.value, low=found.low, high=found.high)
