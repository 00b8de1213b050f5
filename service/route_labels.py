"""What requests are counted under: the template of the route that their path belongs to."""

from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

from starlette.routing import BaseRoute, Route

OTHER = "other"  # every path that no route has, so that labels stay few


class RouteLabels:
    """Finds the route of a path; for requests that are answered before they reach it.

    Args:
        routes: of the app, in their order.
    """

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        self._routes = [route for route in routes if isinstance(route, Route)]

    def of(self, path: str) -> str:
        """The template of the first route with this path, whatever its methods."""
        found = (route.path for route in self._routes if route.path_regex.match(path))
        return next(found, OTHER)

    def of_target(self, target: bytes) -> str:
        """The same for a path as a request has it, with its query."""
        path, _, _ = target.partition(b"?")
        return self.of(unquote_to_bytes(path).decode("latin-1"))
