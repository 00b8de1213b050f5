# The service on an NVIDIA GPU, or on a CPU if there is none: TensorRT, no torch, no compiler, no
# root. Build from the repository root:
#   docker build -f docker/gpu.Dockerfile -t detr-serve-gpu .

# This stage has nvcc and TensorRT's headers, for the plugin. 26.08 holds TensorRT 11.2.1 on CUDA 13,
# Ubuntu 24.04; TensorRT is installed below in the same version.
FROM nvcr.io/nvidia/tensorrt:26.08-py3 AS plugin
WORKDIR /build
COPY plugins/ plugins/
RUN echo 'static_assert(NV_TENSORRT_MAJOR == 11 && NV_TENSORRT_MINOR == 2 && NV_TENSORRT_PATCH == 1);' > version.cpp \
    && TENSORRT_INCLUDE_DIR=$(dirname "$(find /usr /opt -name NvInferRuntime.h -print -quit)") \
    && export TENSORRT_INCLUDE_DIR \
    && g++ -std=c++17 -fsyntax-only -I"$TENSORRT_INCLUDE_DIR" -include NvInferVersion.h version.cpp \
    && python3 -m plugins.build

# This stage has a compiler, for the CPU's native kernels. It is Debian 13, whose C library is newer
# than Ubuntu 24.04's, so what was linked there loads here.
FROM python:3.11.14-trixie AS packages
WORKDIR /build
COPY pyproject.toml constraints.txt ./
RUN python -m venv /venv \
    && /venv/bin/python -m pip install --no-cache-dir -c constraints.txt --upgrade pip \
    && /venv/bin/python -m pip install --no-cache-dir -c constraints.txt --group service --group tracing --group tensorrt \
    && /venv/bin/python -m pip install --no-cache-dir -c constraints.txt tensorrt-cu13==11.2.1.2 \
    && /venv/bin/python -m pip uninstall --yes pip
COPY plugins/ plugins/
RUN /venv/bin/python -m plugins.build

FROM python:3.11.14-slim-trixie
WORKDIR /app
# The root file system may be read-only: nothing is written, not even byte code.
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
COPY --from=packages /venv /venv
COPY bundle/ bundle/
COPY engines/ engines/
COPY service/ service/
COPY plugins/__init__.py plugins/library.py plugins/
COPY --from=packages /build/build/plugins/ build/plugins/
COPY --from=plugin /build/build/plugins/libms_deform_attn_tensorrt.so build/plugins/
# It loads without TensorRT or a driver; a missing symbol ends the build here.
RUN /venv/bin/python -c "import ctypes, os; ctypes.CDLL('build/plugins/libms_deform_attn_tensorrt.so', os.RTLD_NOW)"
COPY bundles/demo/ bundles/demo/
# Listens on every interface of the container; the port mapping decides what outsiders can reach.
ENV DETR_HOST=0.0.0.0 DETR_PORT=8000 DETR_BUNDLE=bundles/demo
USER 10001:10001
EXPOSE 8000
# Building a plan at start takes minutes.
HEALTHCHECK --interval=10s --timeout=3s --start-period=1800s --retries=3 \
    CMD ["/venv/bin/python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['DETR_PORT'] + '/readyz', timeout=2)"]
CMD ["/venv/bin/python", "-m", "service"]
