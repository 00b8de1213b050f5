"""The half of the fake TensorRT that reads graphs and builds plans; see fake_tensorrt.py."""

import weakref
from pathlib import Path
from typing import Any

import onnxruntime

from tests.fake_cuda import Misuse


class Network:
    def __init__(self) -> None:
        self.graph: Path | None = None
        self.parser: Any = None  # a weak reference: it owns the weights


class Config:
    def __init__(self) -> None:
        self.progress_monitor: Any = None
        self.plugins_to_serialize: list[str] = []
        self.cleared: list[object] = []
        self.pools: dict[object, int] = {}
        self.cache: Cache | None = None
        self.profiles: list[dict[str, Any]] = []

    def clear_flag(self, flag: object) -> None:
        self.cleared.append(flag)

    def set_memory_pool_limit(self, pool: object, pool_size: int) -> None:
        self.pools[pool] = pool_size

    def create_timing_cache(self, serialized_timing_cache: bytes) -> "Cache":
        return Cache(serialized_timing_cache)

    def set_timing_cache(self, cache: "Cache", ignore_mismatch: bool) -> bool:
        self.cache = cache
        return cache.content in (b"", b"timings")

    def add_optimization_profile(self, profile: "Shapes") -> int:
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1


class Cache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return b"timings"


class Shapes:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self.shapes[input] = (min, opt, max)


class Parser:
    def __init__(self, network: Network) -> None:
        self._network = network
        self._errors: list[str] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def parse_from_file(self, model: str) -> bool:
        try:
            onnxruntime.InferenceSession(model)
        except Exception as error:
            self._errors.append(str(error))
            return False
        self._network.graph = Path(model)
        self._network.parser = weakref.ref(self)
        return True

    def get_error(self, index: int) -> str:
        return self._errors[index]


class Builder:
    def __init__(self, trt: Any, log: Any) -> None:
        self._trt = trt
        if trt.log is None:
            trt.log = log

    def create_network(self, flags: int) -> Network:
        assert flags == 1 << self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return Network()

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Shapes:
        return Shapes()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        self._trt.builds.append(config)
        monitor = config.progress_monitor
        monitor.phase_start("Tactics", None, 2)
        if not (monitor.step_complete("Tactics", 0) and monitor.step_complete("Tactics", 1)):
            return None
        monitor.phase_finish("Tactics")
        if self._trt.fails("build_serialized_network"):
            return None
        assert network.graph is not None
        if network.parser() is None:
            raise Misuse("the parser was destroyed before the build")
        return self._trt.make_plan(
            network.graph, config.profiles, libraries=config.plugins_to_serialize
        )
