# Training, evaluation and export, on a GPU if there is one: the torch that pip installs on Linux
# includes the CUDA libraries. Build from the repository root:
#   docker build -f docker/train.Dockerfile -t detr-train .

# This stage has a compiler, for the native kernels.
FROM python:3.11.14-bookworm AS packages
WORKDIR /build
COPY pyproject.toml constraints.txt ./
RUN python -m venv /venv \
    && /venv/bin/python -m pip install --no-cache-dir -c constraints.txt --upgrade pip \
    && /venv/bin/python -m pip install --no-cache-dir -c constraints.txt --group export
COPY plugins/ plugins/
RUN /venv/bin/python -m plugins.build

FROM python:3.11.14-slim-bookworm
WORKDIR /app
COPY --from=packages /venv /venv
COPY bundle/ bundle/
COPY model/ model/
COPY engines/ engines/
COPY export/ export/
COPY plugins/ plugins/
COPY --from=packages /build/build/plugins/ build/plugins/
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
CMD ["/venv/bin/python", "-m", "model.train", "--help"]
