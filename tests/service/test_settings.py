"""Settings: wrong ones are refused with a sentence; the table documents every one."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from service.__main__ import app
from service.settings import Settings, settings_table


def refused(**values) -> str:
    with pytest.raises(ValidationError) as error:
        Settings(**values)
    return str(error.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_without_a_key_only_loopback_is_served(host):
    assert "set GTIREC_API_KEY" in refused(host=host)
    assert Settings(host=host, api_key="0123456789abcdef").host == host
    assert Settings(host=host, allow_anonymous=True).host == host


@pytest.mark.parametrize(
    ("values", "measured", "width"),
    [({}, None, 50), ({}, 100, 100), ({"default_beam_width": 8}, 100, 8), ({"max_beam_width": 64}, 100, 64)],
)
def test_the_width_that_was_measured_serves_unless_told_otherwise(values, measured, width):
    assert Settings(**values).beam_width(measured) == width


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_loopback_needs_no_key(host):
    assert Settings(host=host).api_key is None


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"redis_url": "http://x"}, "must start with redis://"),
        ({"redis_url": "redis+cluster://x"}, "Redis Cluster is not supported"),
        ({"redis_url": "redis+sentinel://a:1,b"}, "must end in /SERVICE"),
        ({"redis_url": "redis+sentinel://a:b:c/shop"}, "host:port,host:port"),
        ({"redis_url": "redis+sentinel://a/shop/x"}, "must be a number"),
        ({"default_beam_width": 600}, "above GTIREC_MAX_BEAM_WIDTH"),
        ({"max_inflight_beam_rows": 100}, "not even one request"),
        ({"max_k": 201}, "less than or equal to 200"),
        ({"api_key": "short"}, "at least 16"),
        ({"engine": "magic"}, "'auto', 'vllm_pooling', 'vllm_logits' or 'torch'"),
        ({"port": 70000}, "65535"),
    ],
)
def test_wrong_values_are_refused(values, sentence):
    assert sentence in refused(**values)


def test_environment_sets_and_empty_means_default(monkeypatch):
    monkeypatch.setenv("GTIREC_PORT", "9000")
    monkeypatch.setenv("GTIREC_API_KEY", "")
    monkeypatch.setenv("GTIREC_REDIS_URL", "redis://:secret@redis:6379/0")
    settings = Settings()
    assert settings.port == 9000 and settings.api_key is None
    assert "secret" not in repr(settings)


def test_the_table_has_a_sentence_for_every_setting():
    table = settings_table()
    for name, field in Settings.model_fields.items():
        assert f"| `GTIREC_{name.upper()}` |" in table
        assert field.description and field.description.endswith(".")
        assert "|" not in field.description
    assert len(table.splitlines()) == len(Settings.model_fields) + 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--host", "0.0.0.0"], "refusing to listen on 0.0.0.0"),
        (["--engine", "magic"], "GTIREC_ENGINE"),
        (["--engine", "torch"], "no bundle at"),
    ],
)
def test_a_wrong_start_is_one_sentence_and_exit_code_2(tmp_path, options, sentence):
    result = CliRunner().invoke(app, ["serve", "--bundle", str(tmp_path / "nowhere"), *options])
    assert result.exit_code == 2
    assert sentence in result.output and "Traceback" not in result.output
