"""Who may call, what they may do, and how often."""

from service.access.callers import Callers
from service.access.keys import ApiKey, Caller, Scope
from service.access.rates import Rates
from service.access.ring import KeyRing

__all__ = ["ApiKey", "Caller", "Callers", "KeyRing", "Rates", "Scope"]
