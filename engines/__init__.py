"""Engines; importing any of them first takes OpenVINO its telemetry.

`import openvino` sends an event to its makers and writes an id into the home directory, unless this
package cannot be imported.
"""

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
