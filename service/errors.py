"""Every error this project raises on purpose, in one tree, with the HTTP status each one becomes.

GtirecError
|- BundleError               the model directory is missing, damaged or of another version
|- CatalogueError            503, Redis is unreachable or holds another catalogue
|  |- BundleMoved            another bundle took over meanwhile
|  `- CatalogueFull         409, no semantic ID is left for a new item
|- Unauthorized             401, no API key was sent
|- Forbidden                403, the API key is not valid or may not do this
|- TryLater                 429, come back in `retry_after_s`
|  `- RateLimited           the caller sends too much
|- EngineError
|  |- EngineOverloaded       429, the same: everybody sends too much
|  |- EngineDead             503, the engine is being rebuilt
|  `- StaleCatalogue         503, the catalogue was exchanged meanwhile; ask again
|- RequestError              422, the caller sent something that cannot be answered
|  |- HistoryTooLong
|  |- BadFilter
|  `- CannotChange           the bundle being served cannot take this change
|- NotFound                  404
|- BatchError                `python -m service batch` cannot begin or go on
|- EventsNotStored           503, neither Redis nor the buffer can take events
|- ActivationConflict        409, a bundle is being activated, or is active already
|- ExperimentConflict        409, an experiment is running, or cannot begin now
|- VersionConflict           409, somebody else changed it first
`- DeadlineExceeded          504
"""


class GtirecError(Exception):
    """Base of all deliberate errors. The message is one sentence for the person who can mend it."""

    status = 500


class BundleError(GtirecError):
    """The bundle cannot be read or trusted; the service refuses to start on it."""


class CatalogueError(GtirecError):
    """The Redis catalogue is unreachable or does not belong to the bundle being served."""

    status = 503


class BatchError(GtirecError):
    """A batch job cannot begin, or cannot go on."""


class BundleMoved(CatalogueError):
    """Another bundle took over; what was to be changed must be changed there."""


class CatalogueFull(CatalogueError):
    """Every semantic ID that the bundle can spell has an item; trying again does not help."""

    status = 409


class Unauthorized(GtirecError):
    """No API key was sent where one is needed."""

    status = 401


class Forbidden(GtirecError):
    """The API key is not valid, or lacks a scope."""

    status = 403


class TryLater(GtirecError):
    """Too much for now.

    Args:
        message: what limit was met.
        retry_after_s: seconds after which a retry is sensible, sent as `Retry-After`.
    """

    status = 429

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(TryLater):
    """The caller sends more than it may."""


class EngineError(GtirecError):
    """The engine could not answer."""

    status = 503


class EngineOverloaded(TryLater, EngineError):
    """Too much work in flight."""


class EngineDead(EngineError):
    """The engine's process is gone; nothing was computed."""


class StaleCatalogue(EngineError):
    """The request refers to a version of the catalogue that the engine no longer holds."""


class RequestError(GtirecError):
    """The request is well-formed JSON but asks for something impossible."""

    status = 422


class HistoryTooLong(RequestError):
    """The history is longer than the hard cap (longer than the model's limit alone is no error)."""


class BadFilter(RequestError):
    """The filter expression names an unknown field or operator."""


class CannotChange(RequestError):
    """The change needs something that the bundle being served does not have."""


class VersionConflict(GtirecError):
    """The item is not in the state that the caller wanted to change."""

    status = 409


class ActivationConflict(GtirecError):
    """A bundle is being activated, or is active already."""

    status = 409


class ExperimentConflict(GtirecError):
    """An experiment is running already, or the bundles do not allow one now."""

    status = 409


class NotFound(GtirecError):
    """No such item or resource."""

    status = 404


class EventsNotStored(GtirecError):
    """Events could not be brought onto a disk; they must be sent again."""

    status = 503


class DeadlineExceeded(GtirecError):
    """The answer was not ready within the request's deadline."""

    status = 504
