from __future__ import annotations

import pytest

from training.learning.schedule import CosineSchedule


def test_rises_then_falls_to_the_final_rate() -> None:
    schedule = CosineSchedule(peak=1.0, final=0.1, warmup_steps=10, steps=101)
    rates = [schedule.rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)
    assert rates[55] == pytest.approx(0.55)


def test_one_step_is_enough() -> None:
    assert CosineSchedule(peak=1.0, final=0.0, warmup_steps=0, steps=1).rate(0) == 1.0
