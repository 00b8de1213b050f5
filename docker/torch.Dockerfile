# The service on an NVIDIA GPU with PyTorch, where there is no TensorRT: the engine torch-cuda. No
# compiler, no root. Build from the repository root:
#   docker build -f docker/torch.Dockerfile -t detr-serve-torch .

# This stage has nvcc, for the kernels of the operator: CUDA 13, Ubuntu 24.04.
FROM nvcr.io/nvidia/tensorrt:26.08-py3 AS kernels
WORKDIR /build
COPY plugins/ plugins/
RUN python3 -m plugins.build

# This stage has a compiler, for the CPU's native kernels. It is Debian 13, whose C library is newer
# than Ubuntu 24.04's, so what was linked there loads here.
FROM python:3.11.14-trixie AS packages
WORKDIR /build
COPY pyproject.toml constraints.txt ./
RUN python -m venv /venv \
    && /venv/bin/python -m pip install --no-cache-dir -c constraints.txt --upgrade pip \
    && /venv/bin/python -m pip install --no-cache-dir -c constraints.txt --group service --group tracing --group torch-cuda \
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
COPY plugins/ plugins/
COPY --from=packages /build/build/plugins/ build/plugins/
COPY --from=kernels /build/build/plugins/libms_deform_attn_cuda.so build/plugins/
# It loads without a driver; a missing symbol ends the build here.
RUN /venv/bin/python -c "import ctypes, os; ctypes.CDLL('build/plugins/libms_deform_attn_cuda.so', os.RTLD_NOW)"
COPY bundles/demo/ bundles/demo/
# Listens on every interface of the container; the port mapping decides what outsiders can reach.
ENV DETR_HOST=0.0.0.0 DETR_PORT=8000 DETR_BUNDLE=bundles/demo DETR_ENGINE=torch-cuda
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=300s --retries=3 \
    CMD ["/venv/bin/python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['DETR_PORT'] + '/readyz', timeout=2)"]
CMD ["/venv/bin/python", "-m", "service"]
