"""POST /items/bulk: many changes in one commit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Discriminator, Tag, TypeAdapter, ValidationError

from service.api.errors import documented, sentence_of
from service.api.item_models import BulkReport, DeleteLine, PatchLine, PutLine, SkippedLine
from service.api.lines import numbered_lines
from service.api.services import ServicesDep, require_write
from service.catalogue import Delete, Operation, Patch
from service.errors import RequestError

MAX_LISTED = 1_000
LINES_AT_ONCE = 200  # parsed between two turns of the event loop

router = APIRouter(tags=["items"], dependencies=[Depends(require_write)])

Line = Annotated[
    Annotated[PutLine, Tag("put")]
    | Annotated[PatchLine, Tag("patch")]
    | Annotated[DeleteLine, Tag("delete")],
    Discriminator(lambda value: value.get("op", "put") if isinstance(value, dict) else None),
]
_LINE: TypeAdapter[PutLine | PatchLine | DeleteLine] = TypeAdapter(Line)

_EXAMPLE = "\n".join(
    [
        '{"item_id": "sku-1", "title": "Trail running shoe", "metadata": {"price": 89.0}}',
        '{"op": "patch", "item_id": "item-17", "available": false}',
        '{"op": "delete", "item_id": "item-9"}',
    ]
)
_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/x-ndjson": {"schema": {"type": "string"}, "example": _EXAMPLE}},
    }
}


@dataclass
class _Read:
    """What the lines of a request came to."""

    operations: list[Operation] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    skipped: list[SkippedLine] = field(default_factory=list)


@router.post(
    "/items/bulk",
    summary="Change many items at once",
    response_model=BulkReport,
    responses=documented(401, 403, 404, 409, 413, 422, 429, 500, 503),
    openapi_extra=_BODY,
)
async def change_items(
    request: Request,
    services: ServicesDep,
    on_bad_row: Annotated[
        Literal["fail", "skip"],
        Query(description="`fail`: one bad line, and nothing is done; `skip`: the others are, with a list."),
    ] = "fail",
) -> BulkReport:
    """Newline-delimited JSON, one change a line: `op` is `put` (the default), `patch` or `delete`.

    All lines become one version of the catalogue: everybody sees all of them or none. Lines about the
    same item are done in order.
    """
    read = await _read(request.stream(), skips=on_bad_row == "skip", max_rows=services.settings.max_bulk_rows)
    written = await services.write(
        read.operations,
        skip_refused=on_bad_row == "skip",
        names=[f"line {line}" for line in read.lines],
    )
    for place, error in written.refused.items():
        item_id = read.operations[place].item_id
        read.skipped.append(SkippedLine(line=read.lines[place], item_id=item_id, error=str(error)))
    skipped = sorted(read.skipped, key=lambda line: line.line)
    return BulkReport(
        num_written=len(read.operations) - len(written.refused),
        num_skipped=len(skipped),
        skipped=skipped[:MAX_LISTED],
        catalogue_version=written.version,
    )


async def _read(body: AsyncIterator[bytes], *, skips: bool, max_rows: int) -> _Read:
    read = _Read()
    async for number, line in numbered_lines(body):
        if len(read.operations) + len(read.skipped) >= max_rows:
            raise RequestError(f"more than {max_rows} lines; send them in several requests")
        try:
            read.operations.append(_operation(line))
            read.lines.append(number)
        except RequestError as error:
            if not skips:
                raise RequestError(f"line {number}: {error}; nothing was changed") from error
            read.skipped.append(SkippedLine(line=number, item_id=_id_in(line), error=str(error)))
        if number % LINES_AT_ONCE == 0:
            await asyncio.sleep(0)
    if not read.operations and not read.skipped:
        raise RequestError("the body holds no line; send one JSON object per line")
    return read


def _operation(text: bytes) -> Operation:
    try:
        line = _LINE.validate_json(text)
    except ValidationError as error:
        raise RequestError(sentence_of(_located(error))) from error
    if isinstance(line, DeleteLine):
        return Delete(line.item_id)
    if isinstance(line, PatchLine):
        return Patch(line.item_id, line.values())
    return line.put(line.item_id)


def _located(error: ValidationError) -> list[dict[str, Any]]:
    """Problems without the name of the chosen kind of line in their location."""
    kinds = ("put", "patch", "delete")
    return [
        {
            **problem,
            "loc": (
                "body",
                *(
                    problem["loc"][1:]
                    if problem["loc"][:1] and problem["loc"][0] in kinds
                    else problem["loc"]
                ),
            ),
        }
        for problem in error.errors(include_url=False)
    ]


def _id_in(text: bytes) -> str | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    item_id = value.get("item_id") if isinstance(value, dict) else None
    return item_id if isinstance(item_id, str) else None
