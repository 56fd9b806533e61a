"""What goes over the wire. Unknown fields are refused, so that a misspelt one is never ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from service.api.explanation_models import Explanation

MAX_K = 200
MAX_CONTEXT_CHARS = 1000

ItemId = Annotated[str, Field(min_length=1, max_length=256, description="The catalogue's id of an item.")]


def whole(value: Any) -> Any:
    """JSON knows one kind of number: 5.0 is a whole one. Strings and booleans are not."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, Field(strict=True, ge=1), BeforeValidator(whole)]

LAST_SECOND = 4_000_000_000  # in the year 2096; larger numbers are milliseconds by mistake


def _seconds(value: Any) -> Any:
    if isinstance(value, int | float) and not 0 <= value <= LAST_SECOND:
        raise ValueError(f"a number must be seconds since 1970, 0 to {LAST_SECOND}")
    return value


Moment = Annotated[
    AwareDatetime,
    BeforeValidator(_seconds),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "format": "date-time"},
                {"type": "number", "minimum": 0, "maximum": LAST_SECOND},
            ]
        }
    ),
]


class HistoryEvent(BaseModel):
    """An item that the user touched, and when."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    item_id: ItemId
    timestamp: Moment | None = Field(
        default=None, description="ISO 8601 with a time zone, or seconds since 1970."
    )


def _event_of_id(value: Any) -> Any:
    return {"item_id": value} if isinstance(value, str) else value


ItemField = Literal["title", "metadata", "semantic_id", "logprob", "probability"]

HistoryElement = Annotated[
    HistoryEvent, BeforeValidator(_event_of_id, json_schema_input_type=ItemId | HistoryEvent)
]


class RotationIn(BaseModel):
    """How answers to the same request may differ: by seed, and by nothing else."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: str = Field(
        min_length=1,
        max_length=64,
        description="The same seed gives the same answer. The date, for example, or the user with the date.",
    )
    strength: float = Field(
        default=0.3,
        strict=True,
        gt=0,
        le=2,
        description="0.1: items whose scores are close change places. 1: items are drawn with the model's "
        "own probabilities. 2: flatter than those.",
    )


class RecommendRequest(BaseModel):
    """Whom to recommend to, and how much."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {"history": ["item-17", "item-204", "item-9"], "k": 5},
                {
                    "history": [
                        {"item_id": "item-17", "timestamp": "2026-01-31T12:00:00Z"},
                        {"item_id": "item-204", "timestamp": "2026-02-01T08:30:00Z"},
                    ],
                    "k": 10,
                    "exclude_seen": True,
                },
            ]
        },
    )

    user_id: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="The caller's name for the user. Without `history`, the one kept from /events is read.",
    )
    history: list[HistoryElement] = Field(
        default=[],
        description="Items the user touched, oldest first (sorted by timestamp where all have one). The "
        "newest ones are read; unknown ones are skipped and listed. Empty: the popular list. Left out: what "
        "/events told about `user_id`.",
    )
    k: Count = Field(default=10, le=MAX_K, description="How many items to recommend.")
    beam_width: Count | None = Field(
        default=None,
        description="Beams kept while decoding; more where it takes more to reach k items. Wider is slower "
        "and finds slightly better items.",
    )
    exclude_items: list[ItemId] = Field(default=[], description="Items that must not be recommended.")
    exclude_seen: bool = Field(
        default=False, strict=True, description="Also leave out every item of the history."
    )
    context: str | None = Field(
        default=None,
        max_length=MAX_CONTEXT_CHARS,
        description="What is wanted, in a few words: a query, a mood, an occasion. Read beside the history, "
        "or by itself. Only for a model that was trained with free text (`context_trained` in `/info`).",
    )
    filter: dict[str, Any] | None = Field(
        default=None,
        description="What every recommended item must be like. `{attribute: value}` means equal; operators "
        "are `eq`, `in`, `gt`, `gte`, `lt`, `lte`, `exists`, as in `{attribute: {operator: value}}`; several "
        "entries must all hold; `and`, `or` (lists of filters) and `not` (a filter) combine. A list "
        "attribute equals a value if it contains it. `/info` names the attributes (`filter_attributes`).",
    )
    session_id: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="For a visitor without `user_id`: the same visitor gets the same variant of an "
        "experiment. Nothing is stored under it.",
    )
    variant: Literal["a", "b"] | None = Field(
        default=None,
        description="Ask for one variant of the running experiment, whoever the user is: to look at both. "
        "Such answers are not counted. Where there is no `b`, `a` answers. Needs the scope `preview`.",
    )
    fields: list[ItemField] | None = Field(
        default=None,
        description="What to say of every item beside `item_id`, `rank` and `source`; left out: everything.",
    )
    rotation: RotationIn | None = Field(
        default=None,
        description="Change the answer by a seed: of the items that the model's beams reach, k are drawn "
        "without replacement, an item with probability proportional to exp(score / strength). Left out: the "
        "same request gets the same answer. Items of other sources than `model` keep their order.",
    )
    explain: bool = Field(
        default=False,
        strict=True,
        description="Also say why. Costs one more decode for each of the newest 8 history items.",
    )


class RecommendedItem(BaseModel):
    """One recommendation; without what the request's `fields` left out."""

    item_id: str
    rank: int = Field(description="1 is best.")
    logprob: float | None = Field(
        default=None,
        description="Natural logarithm of the probability that the model gives this item's semantic ID "
        "after this history; null where the model did not choose the item.",
    )
    probability: float | None = Field(default=None, description="exp(logprob).")
    semantic_id: str = Field(
        default="", description="The ID that the model wrote, for example `<a_12><b_7><c_200>`."
    )
    title: str = ""
    metadata: dict[str, Any] = {}
    source: Literal["model", "sibling", "popular"] = Field(
        description="`model`: decoded; `sibling`: shares the beginning of its ID with a decoded one; "
        "`popular`: among the most popular."
    )
    explanation: Explanation | None = Field(default=None, description="Only where `explain` asked for it.")


class RecommendResponse(BaseModel):
    """Exactly min(k, items allowed) items, best first: by the model's log-probability or, where the bundle
    has an item prior, by its score, so that `logprob` need not fall."""

    recommendation_id: str = Field(description="Unique name of this answer.")
    items: list[RecommendedItem]
    unknown_items: list[str] = Field(description="Ids of the request that the catalogue does not hold.")
    short: bool = Field(description="Fewer than k items exist or are allowed.")
    bundle_id: str = Field(description="Which model and catalogue answered.")
    variant: Literal["a", "b"] | None = Field(
        default=None,
        description="Which variant of the running experiment answered: `a` is the active bundle. Null while "
        "none is running.",
    )
    assigned_variant: Literal["a", "b"] | None = Field(
        default=None,
        description="Which one this user should get (or which was asked for): differs from `variant` where "
        "`b` could not answer and `a` did instead.",
    )
    catalogue_version: int = Field(
        description="Changes to the bundle's items that the answer knows; 0 = the items of the bundle."
    )
    degraded: bool = Field(
        description="Redis, the engine or the user's history is away: items came from memory, or are "
        "popular ones, or both."
    )
    timings: dict[str, float] = Field(description="Milliseconds per stage.")


class ErrorBody(BaseModel):
    """Every answer that is no success."""

    error: str = Field(description="One sentence: what was wrong, and what to do.")
    error_type: str = Field(examples=["validation_error", "engine_dead"])
    request_id: str


MAX_BATCH = 256


class BatchRequest(BaseModel):
    """Several requests in one call."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [{"requests": [{"history": ["item-17"], "k": 3}, {"history": ["item-204"], "k": 3}]}]
        },
    )

    requests: Annotated[list[RecommendRequest], Field(min_length=1, max_length=MAX_BATCH)]


class BatchLine(BaseModel):
    """One line of a batch's answer: `response`, or `status` and `error`."""

    index: int = Field(description="Place of the request in `requests`, from 0.")
    response: RecommendResponse | None = None
    status: int | None = Field(default=None, description="What /recommend would have answered with.")
    error: ErrorBody | None = None


class Item(BaseModel):
    """One item of the catalogue."""

    item_id: str
    title: str
    description: str | None = Field(default=None, description="Only where one item is asked for.")
    metadata: dict[str, Any]
    popularity: int = Field(description="How often it occurs in the training sequences.")
    available: bool = Field(default=True, description="False: it is not recommended (out of stock).")
    version: int = Field(
        default=0, description="Version of the catalogue that changed it last; 0 = as in the bundle."
    )
    semantic_id: str


class ItemList(BaseModel):
    """Items found by title."""

    items: list[Item]
