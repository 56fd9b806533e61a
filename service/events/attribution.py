"""Credits events to the answers that they followed from: to the bundle, the variant, the experiment.

Only events that are new and kept count, so a repeated or replayed one counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from service.events.event import Event
from service.observability import metrics
from service.recommendation_id import Origin, origin_of


class Attribution:
    """Counts events by the name of the answer that they carry.

    Args:
        served_bundles: gives the bundle_ids that can be credited; names of answers come from callers, and
            labels of metrics must stay few.
        on_credit: told where a credited event came from, and its kind.
    """

    def __init__(
        self,
        served_bundles: Callable[[], Collection[str]],
        on_credit: Callable[[Origin, str], None] = lambda origin, kind: None,
    ) -> None:
        self._served_bundles = served_bundles
        self._on_credit = on_credit

    def count(self, event: Event) -> None:
        """Credit one event, if it names an answer."""
        if event.recommendation_id is None:
            return
        origin = origin_of(event.recommendation_id)
        if origin is None or origin.bundle_id not in self._served_bundles():
            metrics.ATTRIBUTED_EVENTS.labels(bundle_id="other", variant="", kind=event.kind).inc()
            return
        metrics.ATTRIBUTED_EVENTS.labels(
            bundle_id=origin.bundle_id, variant=origin.variant, kind=event.kind
        ).inc()
        self._on_credit(origin, event.kind)
