"""Image bytes → text; copied whole into every registered model."""

import os

# ONNX Runtime leaves a file in the temporary folder and reports to its maker, unless told not to before its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
