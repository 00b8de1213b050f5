"""Engines; importing any of them first disables OpenVINO's telemetry.

`import openvino` sends an event to its makers and writes an id into the home directory, unless the
package openvino_telemetry cannot be imported.
"""

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
