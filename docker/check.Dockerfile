# The tests and timings that need an NVIDIA GPU, with the compiler and the headers of NVIDIA's
# TensorRT image. Build from the repository root:
#   docker build -f docker/check.Dockerfile -t detr-check .
#   docker run --rm --gpus all detr-check
#   docker run --rm --gpus all -v "$PWD/benchmarks/results:/check/benchmarks/results" detr-check make bench-gpu

FROM nvcr.io/nvidia/tensorrt:26.08-py3
WORKDIR /check
COPY Makefile pyproject.toml constraints.txt ./
COPY bundle/ bundle/
COPY engines/ engines/
COPY service/ service/
COPY model/ model/
COPY plugins/ plugins/
COPY export/ export/
COPY bundles/ bundles/
COPY tests/ tests/
COPY benchmarks/ benchmarks/
RUN make install PYTHON=python3 \
    && .venv/bin/python -m pip install --no-cache-dir -c constraints.txt tensorrt-cu13==11.2.1.2
CMD ["make", "test-gpu"]
