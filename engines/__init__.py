"""Engines; importing any of them first disables the runtimes' telemetry.

`import openvino` sends an event to its makers and writes an id into the home directory, unless the
package openvino_telemetry cannot be imported. `import onnxruntime` writes an id and a database
there, for events that it sends, unless the variable says otherwise.
"""

import os
import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
