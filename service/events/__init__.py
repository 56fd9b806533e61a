"""What users did: recorded durably, read back as histories, erased on demand, exported for training."""

from service.events.attribution import Attribution
from service.events.buffer import EventBuffer
from service.events.event import HISTORY_KINDS, Event
from service.events.recorder import EventLimits, EventRecorder, Recorded

__all__ = ["HISTORY_KINDS", "Attribution", "Event", "EventBuffer", "EventLimits", "EventRecorder", "Recorded"]
