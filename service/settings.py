"""Everything that can be set from outside, read from environment variables with the prefix `GTIREC_`.

Every description says what to do; README's table is made from them (`python -m service settings`).
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.redis_url import check_url

DEFAULT_BEAM_WIDTH = 50

EngineChoice = Literal["auto", "vllm_pooling", "vllm_logits", "torch"]


class Settings(BaseSettings):
    """The service's configuration; a wrong value stops the start with a sentence."""

    model_config = SettingsConfigDict(
        env_prefix="GTIREC_", extra="ignore", frozen=True, env_ignore_empty=True
    )

    bundle: Path = Field(
        default=Path("runs/demo/bundle"),
        description="Directory of the bundle to serve: what `python -m training all` exported.",
    )
    bundle_id: str | None = Field(
        default=None,
        pattern="^[0-9a-f]{16}$",
        description="Identifier that the bundle must have; any other is refused. Pin it where bundles come "
        "over a network: `python -m service bundle verify` prints it.",
    )
    verify_bundle: bool = Field(
        default=True,
        description="Hash every file of the bundle before serving. Turn off only where starts must be "
        "fast and the storage is trusted.",
    )
    bundles_dir: Path | None = Field(
        default=None,
        description="Directory whose sub-directories are bundles that POST /admin/bundles/ID/activate may "
        "switch to. Put the same bundles there on every replica.",
    )
    engine: EngineChoice = Field(
        default="auto",
        description="Which engine runs the model. `auto` takes vllm_pooling where vLLM is installed and "
        "torch elsewhere; set vllm_logits for LoRA or tensor parallelism.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Number format the model runs in. `auto` takes float32 on a CPU and bfloat16 on a GPU.",
    )
    gpu_memory_utilization: float = Field(
        default=0.6,
        gt=0,
        le=1,
        description="Share of the GPU's memory that vLLM may take for weights and cache. Lower it where "
        "other processes use the GPU.",
    )
    cpu_kv_cache_gib: float = Field(
        default=1.0,
        gt=0,
        description="GiB of memory for vLLM's cache of prompts on a CPU. Raise it for long histories and "
        "many clients.",
    )
    host: str = Field(
        default="127.0.0.1",
        description="Address to listen on. Anything but a loopback address needs an API key.",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    api_key: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="Key that callers send as `Authorization: Bearer KEY` or `X-API-Key: KEY`. Make one "
        "with `openssl rand -hex 32`. Probes, metrics, the page and the docs need none.",
    )
    admin_key: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="Key that may also administer (bundles, whole catalogues). Without it, and without a "
        "key of scope admin, administration is off.",
    )
    require_key: bool = Field(
        default=False,
        description="Refuse requests without a key, where the keys are those of `python -m service keys "
        "create`: several, with scopes, expiry and rates of their own.",
    )
    rate_limit_per_s: float | None = Field(
        default=None,
        gt=0,
        description="Requests a second that one key may send to this replica; keys can have a rate of "
        "their own. Unset: no bound.",
    )
    allow_anonymous: bool = Field(
        default=False,
        description="Listen on any address without a key. Set it only where something in front (compose "
        "on 127.0.0.1, a gateway) decides who may call.",
    )
    redis_url: SecretStr | None = Field(
        default=None,
        description="Redis of the catalogue, password included: redis://, rediss:// (TLS), unix:// or "
        "redis+sentinel://host,host/service. Unset starts a private server in the data directory.",
    )
    redis_timeout_s: float = Field(
        default=0.5,
        gt=0,
        description="Seconds a catalogue look-up may take before the service answers from memory instead.",
    )
    data_dir: Path = Field(
        default=Path("data"),
        description="Directory for what the service keeps on this machine: the private Redis server, and "
        "events that wait for Redis. Put it on a disk that outlives the process.",
    )
    default_beam_width: int | None = Field(
        default=None,
        ge=1,
        description="Beams kept per level where a request names no width; never fewer than its k. More "
        "is slower and finds slightly better items. Unset: those that the bundle's figures were measured "
        "with, or 50 where it names none.",
    )
    max_beam_width: int = Field(
        default=512, ge=1, description="Widest beam a request may ask for; bounds the work of one request."
    )
    max_k: int = Field(default=200, ge=1, le=200, description="Most items a request may ask for, 1 to 200.")
    max_history: int = Field(
        default=1000,
        ge=1,
        description="Most history elements a request may send. The model reads only its newest ones; "
        "this cap only keeps requests small.",
    )
    max_exclude: int = Field(
        default=10_000, ge=0, description="Most items a request may exclude by `exclude_items`."
    )
    filter_cache_mib: int = Field(
        default=256,
        ge=1,
        description="MiB of memory for what filters allow, so that the next request with the same filter "
        "costs nothing more: 4 bytes per item and filter in the engine, and as much again at most in the "
        "service.",
    )
    event_history: int = Field(
        default=500,
        ge=1,
        le=10_000,
        description="Events kept per user; older ones go. More than the model reads is useful for "
        "`exclude_seen` and for training.",
    )
    event_retention_days: float = Field(
        default=180.0,
        gt=0,
        description="Days after which a user's event is deleted. Set it to what your privacy policy says.",
    )
    event_buffer_bytes: int = Field(
        default=1 << 30,
        ge=1024,
        description="Most bytes of events kept in the data directory while Redis is away (about 200 an "
        "event); beyond that events are answered 503.",
    )
    request_deadline_s: float = Field(
        default=10.0, gt=0, description="Seconds until an unfinished request is cancelled and answered 504."
    )
    max_inflight_beam_rows: int = Field(
        default=4096,
        ge=1,
        description="Most beams in work at once, summed over requests; more wait, then are answered 429. "
        "Lower it if the 99th percentile of latency grows under load.",
    )
    queue_timeout_s: float = Field(
        default=0.25,
        ge=0,
        description="Seconds a request may wait for beams in work to finish before it is answered 429; 0 "
        "refuses at once.",
    )
    max_body_bytes: int = Field(
        default=1_000_000, ge=1024, description="Largest request body in bytes; larger ones are answered 413."
    )
    max_bulk_bytes: int = Field(
        default=64_000_000, ge=1024, description="The same for the routes that end in /bulk."
    )
    max_bulk_rows: int = Field(
        default=100_000, ge=1, description="Most lines of one POST /items/bulk; more are answered 422."
    )
    engine_start_timeout_s: float = Field(
        default=600.0,
        gt=0,
        description="Seconds the first load of the model may take. Raise it for slow disks.",
    )
    engine_give_up_s: float = Field(
        default=45.0,
        gt=0,
        description="Seconds to try to rebuild a dead engine before the process exits non-zero, so that "
        "whatever supervises it can start it afresh. Raise it where the model takes longer to load.",
    )
    canary_interval_s: float = Field(
        default=10.0,
        gt=0,
        description="Seconds without a finished request after which the engine gets a test request.",
    )
    canary_timeout_s: float = Field(
        default=30.0,
        gt=0,
        description="Seconds after which an engine that finishes nothing counts as hung and is rebuilt.",
    )
    drain_delay_s: float = Field(
        default=1.0,
        ge=0,
        description="Seconds between SIGTERM (readiness fails) and refusing new requests with 503. In "
        "Kubernetes set it to a little more than the readiness probe's period.",
    )
    shutdown_timeout_s: float = Field(
        default=20.0,
        gt=0,
        description="Seconds that requests in flight get to finish after that; then the port closes.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe log lines written; debug also logs probes."
    )
    log_format: Literal["json", "text"] = Field(
        default="json", description="One JSON object a line for machines, or text for a person at a terminal."
    )

    def beam_width(self, measured: int | None) -> int:
        """Beams for a request that names no width.

        Args:
            measured: those that the bundle's figures were measured with, if it says so.
        """
        return min(self.default_beam_width or measured or DEFAULT_BEAM_WIDTH, self.max_beam_width)

    @field_validator("redis_url")
    @classmethod
    def _known_scheme(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            check_url(url.get_secret_value())
        return url

    @model_validator(mode="after")
    def _limits_fit(self) -> Settings:
        if self.default_beam_width is not None and self.default_beam_width > self.max_beam_width:
            raise ValueError(
                f"GTIREC_DEFAULT_BEAM_WIDTH is {self.default_beam_width}, above GTIREC_MAX_BEAM_WIDTH "
                f"({self.max_beam_width}); lower one or raise the other"
            )
        if self.max_inflight_beam_rows < self.max_beam_width:
            raise ValueError(
                f"GTIREC_MAX_INFLIGHT_BEAM_ROWS is {self.max_inflight_beam_rows}: not even one request of "
                f"GTIREC_MAX_BEAM_WIDTH ({self.max_beam_width}) could run; raise it"
            )
        return self

    @model_validator(mode="after")
    def _strangers_need_a_key(self) -> Settings:
        has_keys = self.api_key is not None or self.require_key
        if not has_keys and not self.allow_anonymous and not _is_loopback(self.host):
            raise ValueError(
                f"refusing to listen on {self.host} without a key: set GTIREC_API_KEY or "
                "GTIREC_REQUIRE_KEY, or listen on 127.0.0.1, or set GTIREC_ALLOW_ANONYMOUS=true if "
                "something in front decides who may call"
            )
        return self


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def settings_table() -> str:
    """The settings as a Markdown table, as it stands in README."""
    rows = ["| variable | default | what to do with it |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "unset" if field.default is None else f"`{field.default}`"
        rows.append(f"| `GTIREC_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows) + "\n"
