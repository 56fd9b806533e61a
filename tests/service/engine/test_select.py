"""Choosing an engine."""

from __future__ import annotations

import logging
import sys

import pytest

from service.engine.protocol import Engine
from service.engine.select import EngineOptions, choose_engine, engine_factory
from service.errors import EngineError


@pytest.fixture
def without_vllm(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)  # importing it raises ModuleNotFoundError


def test_torch_by_name_needs_no_vllm(without_vllm, small_bundle):
    assert choose_engine("torch") == "torch"
    engine = engine_factory("torch", small_bundle, EngineOptions())()
    assert isinstance(engine, Engine) and engine.name == "torch" and not engine.is_alive


def test_auto_falls_back_with_one_line(without_vllm, caplog):
    caplog.set_level(logging.INFO, "service")
    assert choose_engine("auto") == "torch"
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["serving with the torch engine, because vLLM is not installed"]


@pytest.mark.parametrize("name", ["vllm_pooling", "vllm_logits"])
def test_vllm_by_name_is_refused_where_it_is_missing(without_vllm, name):
    with pytest.raises(EngineError, match=f"GTIREC_ENGINE={name} needs vLLM, but vLLM is not installed"):
        choose_engine(name)
