"""/items: find, read, and change the catalogue."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Header, Path, Query, Response
from pydantic import WithJsonSchema

from service.api.errors import documented
from service.api.item_models import ID_PATTERN, ItemBody, ItemPatch, SimilarItem, SimilarItems, WrittenItem
from service.api.models import Item, ItemList
from service.api.services import Services, ServicesDep, require_read, require_write
from service.catalogue import Delete, ItemRecord, Operation, Patch
from service.errors import NotFound, RequestError

router = APIRouter(tags=["items"], dependencies=[Depends(require_read)])

ItemIdInPath = Annotated[str, Path(max_length=256)]
NewIdInPath = Annotated[str, Path(min_length=1, max_length=256, pattern=ID_PATTERN)]
# A missing header is no header: the schema must not offer null.
IfMatch = Annotated[
    str | None,
    WithJsonSchema({"type": "string", "pattern": '^(W/)?"[0-9]{1,15}"$'}),
    Header(max_length=40, description='Change the item only if it is at this version, e.g. `"17"`.'),
]
IfNoneMatch = Annotated[
    str | None,
    WithJsonSchema({"type": "string", "enum": ["*"]}),
    Header(max_length=40, description="`*`: only if there is no such item yet."),
]
CHANGES = documented(401, 403, 404, 409, 413, 422, 429, 500, 503)


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
    "/items/{item_id:path}/similar",
    summary="Find items like one item",
    response_model=SimilarItems,
    responses=documented(401, 403, 404, 422, 500),
)
async def similar_items(
    services: ServicesDep, item_id: ItemIdInPath, k: Annotated[int, Query(ge=1, le=100)] = 10
) -> SimilarItems:
    """Items whose semantic ID begins alike, ranked by how near their texts are; the model is not asked."""
    record = await _known(services, item_id)
    spell = services.bundle.manifest.spell
    found = await services.catalogue.similar(record, k)
    return SimilarItems(
        item_id=item_id,
        semantic_id=spell(np.array(record.codes)),
        items=[
            SimilarItem(
                item_id=other.item_id,
                rank=rank,
                similarity=similarity,
                shared_levels=shared_levels,
                semantic_id=spell(np.array(other.codes)),
                title=other.title,
                metadata=other.metadata,
            )
            for rank, (other, shared_levels, similarity) in enumerate(found, start=1)
        ],
    )


@router.get(
    "/items/{item_id:path}",
    summary="Look up one item",
    response_model=Item,
    responses=documented(401, 403, 404, 422, 500),
)
async def get_item(services: ServicesDep, response: Response, item_id: ItemIdInPath) -> Item:
    """One item with its description and semantic ID, as it is now on every replica."""
    record = await _known(services, item_id)
    response.headers["ETag"] = f'"{record.version}"'
    return _item(record, services)


@router.put(
    "/items/{item_id:path}",
    summary="Make or replace an item",
    response_model=WrittenItem,
    responses=CHANGES | {201: {"model": WrittenItem, "description": "The item is new."}},
    dependencies=[Depends(require_write)],
)
async def put_item(
    services: ServicesDep,
    response: Response,
    item_id: NewIdInPath,
    body: ItemBody,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
) -> WrittenItem:
    """A new item gets a free semantic ID from the bundle's own encoder and codebooks, and can be
    recommended within about two seconds. An item whose text stays keeps its ID."""
    if if_none_match is not None and if_none_match != "*":
        raise RequestError("'If-None-Match' must be *")
    put = body.put(item_id, if_version=_version(if_match), only_new=if_none_match is not None)
    return await _write(services, response, put)


@router.patch(
    "/items/{item_id:path}",
    summary="Change some fields of an item",
    response_model=WrittenItem,
    responses=CHANGES,
    dependencies=[Depends(require_write)],
)
async def patch_item(
    services: ServicesDep,
    response: Response,
    item_id: NewIdInPath,
    body: ItemPatch,
    if_match: IfMatch = None,
) -> WrittenItem:
    """Fields that are not named stay; so does the semantic ID, unless the text changes. `available: false`
    takes the item out of all recommendations at once."""
    return await _write(services, response, Patch(item_id, body.values(), _version(if_match)))


@router.delete(
    "/items/{item_id:path}",
    summary="Delete an item",
    response_model=WrittenItem,
    responses=CHANGES,
    dependencies=[Depends(require_write)],
)
async def delete_item(
    services: ServicesDep, response: Response, item_id: NewIdInPath, if_match: IfMatch = None
) -> WrittenItem:
    """The item is out of all recommendations at once, and unknown in histories."""
    return await _write(services, response, Delete(item_id, _version(if_match)))


async def _write(services: Services, response: Response, operation: Operation) -> WrittenItem:
    written = await services.write([operation])
    record, is_new = written.records[0], written.is_new[0]
    response.status_code = 201 if is_new else 200
    response.headers["ETag"] = f'"{written.version}"'
    return WrittenItem(
        item_id=operation.item_id,
        created=is_new,
        semantic_id=None if record is None else services.bundle.manifest.spell(np.array(record.codes)),
        version=written.version,
        catalogue_version=written.version,
    )


async def _known(services: Services, item_id: str) -> ItemRecord:
    record = (await services.catalogue.item(item_id)).value
    if record is None:
        raise NotFound("the catalogue holds no item with this id; find ids with GET /items?query=")
    return record


def _version(if_match: str | None) -> int | None:
    """The version in an If-Match header."""
    if if_match is None:
        return None
    digits = if_match.strip().removeprefix("W/").strip('"')
    if not (digits.isascii() and digits.isdigit()):
        raise RequestError("'If-Match' must be one version of an item, as its ETag says, for example \"17\"")
    return int(digits)


def _item(record: ItemRecord, services: Services) -> Item:
    return Item(
        item_id=record.item_id,
        title=record.title,
        description=record.description,
        metadata=record.metadata,
        popularity=record.popularity,
        available=record.is_available,
        version=record.version,
        semantic_id=services.bundle.manifest.spell(np.array(record.codes)),
    )
