"""Admission by beam rows."""

from __future__ import annotations

import pytest

from service.engine.admission import Admission
from service.errors import EngineOverloaded


def test_refuses_beyond_the_limit_and_frees_on_every_way_out():
    admission = Admission(10)
    with admission.reserve(6):
        too_many = pytest.raises(EngineOverloaded, match="6 beams are in work and 10 is the limit")
        with too_many as refused, admission.reserve(5):
            raise AssertionError("must not be reached")
        assert refused.value.retry_after_s >= 1
        with pytest.raises(ZeroDivisionError), admission.reserve(4):
            raise ZeroDivisionError
        with admission.reserve(4):
            pass
    with admission.reserve(10):
        pass
