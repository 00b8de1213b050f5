"""Records the API's description in openapi.json: python -m tests.data.openapi."""

import json
import tempfile
from pathlib import Path

from service.app import create_app
from service.settings import Settings
from tests.toy_bundle import make_toy_bundle

RECORD = Path(__file__).with_name("openapi.json")


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        bundle = Path(directory) / "toy"
        make_toy_bundle(bundle)
        described = create_app(Settings(bundle=bundle)).openapi()
    RECORD.write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
