"""All Prometheus metrics, the one place of global state. Base units; no user or item ids in labels.

The label `variant` says which bundle something is about: "a" is the active one, "b" the one that an
experiment tries beside it. What counts answers also has "forced": answers by a variant that the caller
chose, which are kept out of both. Empty: no variant has to do with it.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

# Geometric, 1 ms to 30 s.
SECONDS = (0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.12, 0.25, 0.5, 1, 2, 4, 8, 15, 30)

REQUESTS = Counter(
    "gtirec_requests_total", "HTTP requests by route and outcome.", ["route", "outcome", "variant"]
)
REQUEST_SECONDS = Histogram(
    "gtirec_request_duration_seconds",
    "Wall-clock time of HTTP requests.",
    ["route", "variant"],
    buckets=SECONDS,
)
STAGE_SECONDS = Histogram(
    "gtirec_stage_duration_seconds",
    "Time of the stages of a recommendation.",
    ["stage", "variant"],
    buckets=SECONDS,
)
INFLIGHT_REQUESTS = Gauge("gtirec_inflight_requests", "HTTP requests being answered.")
INFLIGHT_BEAM_ROWS = Gauge("gtirec_inflight_beam_rows", "Beams being decoded, summed over requests.")
ENGINE_CALLS = Counter(
    "gtirec_engine_calls_total", "Decode requests sent to the engine.", ["outcome", "variant"]
)
BEAMS = Counter(
    "gtirec_beams_total",
    "Semantic IDs that the engine returned: unique, repeated in one answer, or invalid (of no item).",
    ["kind", "variant"],
)
PROMPT_TOKENS = Counter(
    "gtirec_prompt_tokens_total",
    "Prompt tokens decoded by vllm_pooling: cached are read from its prefix cache, computed are not.",
    ["kind"],
)
FILTER_LOOKUPS = Counter(
    "gtirec_filter_lookups_total",
    "Times the rows of a filter were asked for: kept from before, or computed.",
    ["kind"],
)
ENGINE_UP = Gauge(
    "gtirec_engine_up", "1 while the engine answers, 0 while it is started or rebuilt.", ["variant"]
)
ENGINE_REBUILDS = Counter("gtirec_engine_rebuilds_total", "Times a dead engine was built anew.", ["variant"])
RECOMMENDED = Counter(
    "gtirec_recommendations_returned_total", "Items returned, by where from.", ["source", "variant"]
)
RECOMMENDED_TIERS = Counter(
    "gtirec_recommended_tier_total",
    "Items returned, by how popular they were in training; see service/catalogue/tiers.py.",
    ["tier", "variant"],
)
COVERAGE = Gauge(
    "gtirec_recommended_coverage_ratio",
    "Share of the items that this replica recommended at least once in the last hour.",
    ["variant"],
)
SHORT_ANSWERS = Counter("gtirec_short_answers_total", "Answers with fewer than k items.", ["variant"])
DEGRADED_ANSWERS = Counter(
    "gtirec_degraded_answers_total",
    "Answers given without Redis, the engine or the history.",
    ["missing", "variant"],
)
RECOMMENDATIONS = Counter("gtirec_recommendations_total", "Answers of /recommend.", ["bundle_id", "variant"])
ATTRIBUTED_EVENTS = Counter(
    "gtirec_attributed_events_total",
    "Events that followed from an answer; divide by gtirec_recommendations_total.",
    ["bundle_id", "variant", "kind"],
)
VARIANT_FALLBACKS = Counter(
    "gtirec_variant_fallbacks_total", "Answers of variant a to users of variant b, by why.", ["reason"]
)
EXPERIMENT_SHARE = Gauge(
    "gtirec_experiment_share", "Share of the users that get variant b; 0 while no experiment runs."
)
EVENTS = Counter(
    "gtirec_events_total", "Events that reached Redis, by what became of them.", ["kind", "outcome"]
)
EVENT_BUFFER_BYTES = Gauge("gtirec_event_buffer_bytes", "Bytes of events that wait for Redis.")
EVENTS_REPLAYED = Counter("gtirec_events_replayed_total", "Events brought from the buffer into Redis.")
EVENTS_REFUSED = Counter("gtirec_events_refused_total", "Events answered 503: no disk could take them.")
QUEUED_REQUESTS = Gauge("gtirec_queued_requests", "Requests that wait for the engine.")
OVERLOADED = Counter("gtirec_overloaded_total", "Requests refused because too many beams were in work.")
RATE_LIMITED = Counter("gtirec_rate_limited_total", "Requests refused because their key sends too many.")
USERS_ERASED = Counter("gtirec_users_erased_total", "Users deleted on demand.")
CATALOGUE_MISSES = Counter("gtirec_catalogue_misses_total", "Items that Redis should hold but did not.")
CATALOGUE_UP = Gauge(
    "gtirec_catalogue_up", "1 while Redis holds the whole catalogue and answers.", ["variant"]
)
CATALOGUE_VERSION = Gauge(
    "gtirec_catalogue_version", "Changes to the bundle's items known here.", ["variant"]
)
CATALOGUE_REBUILDS = Counter(
    "gtirec_catalogue_rebuilds_total", "Tries built from changed items.", ["outcome"]
)
CATALOGUE_REBUILD_SECONDS = Histogram(
    "gtirec_catalogue_rebuild_seconds", "From changed items to a trie in the decode.", buckets=SECONDS
)
CATALOGUE_WRITES = Counter("gtirec_catalogue_writes_total", "Items changed, by operation.", ["operation"])
BUNDLE = Gauge(
    "gtirec_bundle_info", "Always 1; the labels name the bundles being served.", ["bundle_id", "variant"]
)
