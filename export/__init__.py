import engines  # noqa: F401  # before any module here imports ONNX Runtime, which would report it
