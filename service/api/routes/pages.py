"""What a person sees in a browser: the page and the API reference. No build step, no CDN."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

STATIC_DIR = Path(__file__).parents[1] / "static"

router = APIRouter(include_in_schema=False)


@router.get("/")
async def page() -> FileResponse:
    """Pick a history, see what is recommended."""
    return FileResponse(STATIC_DIR / "index.html", media_type="text/html")


@router.get("/docs")
async def docs() -> FileResponse:
    """The API reference, drawn from /openapi.json by a script of ours: FastAPI's own page loads its
    scripts from another server, which fails without a network and under our content policy."""
    return FileResponse(STATIC_DIR / "docs.html", media_type="text/html")


def mount_static(app: FastAPI) -> None:
    """Serve the pages' styles and scripts below /static."""
    app.mount("/static", StaticFiles(directory=STATIC_DIR), name="static")
