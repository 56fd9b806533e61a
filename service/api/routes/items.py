"""GET /items/{item_id} and GET /items."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Path, Query

from service.api.errors import documented
from service.api.models import Item, ItemList
from service.api.services import Services, ServicesDep, require_key
from service.catalogue import ItemRecord
from service.errors import NotFound

router = APIRouter(tags=["items"], dependencies=[Depends(require_key)])


@router.get(
    "/items", summary="Find items by title", response_model=ItemList, responses=documented(401, 403, 422, 500)
)
async def find_items(
    services: ServicesDep,
    query: Annotated[
        str, Query(max_length=200, description="Words of the title; empty: popular items.")
    ] = "",
    limit: Annotated[int, Query(ge=1, le=50)] = 12,
) -> ItemList:
    """Items whose title holds every word; meant for building a history by hand."""
    records = await services.catalogue.search(query, limit)
    return ItemList(items=[_item(record, services) for record in records])


@router.get(
    "/items/{item_id:path}",
    summary="Look up one item",
    response_model=Item,
    responses=documented(401, 403, 404, 422, 500),
)
async def get_item(services: ServicesDep, item_id: Annotated[str, Path(max_length=256)]) -> Item:
    """One item with its description and semantic ID."""
    record = (await services.catalogue.item(item_id)).value
    if record is None:
        raise NotFound("the catalogue holds no item with this id; find ids with GET /items?query=")
    return _item(record, services)


def _item(record: ItemRecord, services: Services) -> Item:
    return Item(
        item_id=record.item_id,
        title=record.title,
        description=record.description,
        metadata=record.metadata,
        popularity=record.popularity,
        semantic_id=services.bundle.manifest.spell(np.array(record.codes)),
    )
