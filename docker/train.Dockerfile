# Training, evaluation and export, on a GPU if there is one: the torch that pip installs on Linux
# includes the CUDA libraries. Build from the repository root:
#   docker build -f docker/train.Dockerfile -t detr-train .

# This stage has nvcc, for the kernels of the operator on a GPU: CUDA 13, Ubuntu 24.04. Without them,
# the operator would run in plain PyTorch, as Triton needs a compiler while it runs.
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
    && /venv/bin/python -m pip install --no-cache-dir -c constraints.txt --group export
COPY plugins/ plugins/
RUN /venv/bin/python -m plugins.build

FROM python:3.11.14-slim-trixie
WORKDIR /app
COPY --from=packages /venv /venv
COPY bundle/ bundle/
COPY model/ model/
COPY engines/ engines/
COPY export/ export/
COPY plugins/ plugins/
COPY --from=packages /build/build/plugins/ build/plugins/
COPY --from=kernels /build/build/plugins/libms_deform_attn_cuda.so build/plugins/
# It loads without a driver; a missing symbol ends the build here.
RUN /venv/bin/python -c "import ctypes, os; ctypes.CDLL('build/plugins/libms_deform_attn_cuda.so', os.RTLD_NOW)"
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
CMD ["/venv/bin/python", "-m", "model.train", "--help"]
