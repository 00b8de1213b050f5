"""POST /admin/reload, for administrators only."""

import asyncio
import hmac

from fastapi import APIRouter, Request

from service.access import bearer_of
from service.errors import Forbidden, NotFound
from service.schemas import ErrorResponse, ModelRef
from service.serving import Serving
from service.settings import Settings
from service.validation import require_names, require_once

router = APIRouter()


@router.post(
    "/admin/reload",
    responses={"4XX": {"model": ErrorResponse, "description": "No key, or a refused bundle."}},
    tags=["operation"],
    summary="Reload the bundle from disk",
)
async def reload(request: Request, model: str | None = None) -> ModelRef:
    """Load the bundle of a model (by default the first) again, test it while the current one keeps
    serving, and switch to it. The answer names the model now served. Send
    `Authorization: Bearer KEY` with the key in `DETR_ADMIN_KEY`.
    """
    _require_key(request)
    require_once(request.query_params)
    require_names(request.query_params, ["model"])
    serving: Serving = request.app.state.serving
    return await asyncio.shield(serving.begin_reload(model))


def _require_key(request: Request) -> None:
    settings: Settings = request.app.state.settings
    if settings.admin_key is None:
        raise NotFound("/admin/reload exists only if DETR_ADMIN_KEY is set")
    expected = settings.admin_key.get_secret_value()
    given = bearer_of(request.headers)
    if not hmac.compare_digest(given.encode("latin-1"), expected.encode()):
        raise Forbidden("expected the header Authorization: Bearer KEY, with DETR_ADMIN_KEY")
