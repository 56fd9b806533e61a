"""/openapi.json says what this very service accepts: its limits, its items, and whether it wants a key.

It follows what is served: another bundle has other items, limits and attributes, and so may other items.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastapi import FastAPI

from service.api.services import Services
from service.catalogue import Snapshot
from service.decoding.filter_expression import filter_schema


def install(app: FastAPI, services: Services) -> None:
    """Make the app's OpenAPI document fit the service. Routes must have been added before."""
    make_document = app.openapi
    made_for: list[object] = []

    def openapi() -> dict[str, Any]:
        now = replace(services)  # as a request sees it: the bundle of this moment
        snapshot = now.catalogue.snapshot
        if made_for != (wanted := [now.bundle.bundle_id, snapshot.space.attributes.schema]):
            app.openapi_schema = None
            _fit(make_document(), now, snapshot)
            made_for[:] = wanted
        return app.openapi_schema or {}

    app.openapi = openapi


def _fit(document: dict[str, Any], services: Services, snapshot: Snapshot) -> None:
    """Change FastAPI's document in place."""
    request = document["components"]["schemas"]["RecommendRequest"]
    _state_limits(request["properties"], services)
    if not services.callers.is_key_needed:
        _ask_for_no_key(document)
        _show_real_items(request["examples"], services)
        document["components"]["schemas"]["Filter"] = filter_schema(
            snapshot.space.attributes.schema, "#/components/schemas/Filter"
        )
        request["properties"]["filter"]["anyOf"][0] = {"$ref": "#/components/schemas/Filter"}


def _state_limits(properties: dict[str, Any], services: Services) -> None:
    settings = services.settings
    properties["k"]["maximum"] = settings.max_k
    properties["beam_width"]["anyOf"][0]["maximum"] = settings.max_beam_width
    properties["history"]["maxItems"] = settings.max_history
    properties["exclude_items"]["maxItems"] = settings.max_exclude
    if not services.bundle.manifest.context_trained:
        properties["context"]["anyOf"] = [{"type": "null"}]  # this model has not learned to read any


def _ask_for_no_key(document: dict[str, Any]) -> None:
    document["components"].pop("securitySchemes", None)
    for operation in (one for path in document["paths"].values() for one in path.values()):
        operation.pop("security", None)


def _show_real_items(examples: list[dict[str, Any]], services: Services) -> None:
    """Put items of this catalogue into the examples, so that they can be sent as they stand. Not where a
    key is needed: this document is readable without one."""
    bundle = services.bundle
    known = bundle.items["item_id"].gather(bundle.popular_rows[:3]).to_list()
    for example in examples:
        history = example["history"]
        for place, item_id in enumerate(known[: len(history)]):
            element = history[place]
            history[place] = item_id if isinstance(element, str) else {**element, "item_id": item_id}
