"""The TensorRT plugin for tests on machines that may have no nvcc."""

from pathlib import Path

from plugins import library
from plugins.build import tensorrt_headers
from tests.plugins.emulated import BINDINGS, EMULATOR, FLAGS, INCLUDES, KERNEL, build


def emulated_plugin() -> Path:
    """The plugin with its kernels emulated on the CPU: all of it but the code for a GPU.

    It takes tensors in the memory of the host, so no engine can run it; TensorRT registers it,
    parses graphs and builds engines with it as with the plugin itself.
    """
    sources = (*sorted(BINDINGS.glob("tensorrt_*.cpp")), KERNEL, EMULATOR / "fibres.cpp")
    link = ("-shared", "-Wl,-z,defs", "-ldl")
    return build("libms_deform_attn_tensorrt_emulated.so", sources, _flags(), link)


def host() -> Path:
    """The library that stands in for TensorRT: tests/plugins/emulator/run_plugin.cpp."""
    return build("librun_plugin.so", (EMULATOR / "run_plugin.cpp",), _flags(), ("-shared", "-ldl"))


def plugin() -> Path:
    """The plugin that serves, if it was built, otherwise the emulated one."""
    return library.find(library.TENSORRT_PLUGIN) or emulated_plugin()


def _flags() -> tuple[str, ...]:
    headers = tensorrt_headers()
    assert headers is not None
    return (*FLAGS, *INCLUDES, "-isystem", str(headers))
