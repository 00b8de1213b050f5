# Training, evaluation and export, on a GPU where there is one: the torch that pip installs on Linux
# brings its CUDA libraries along. Build from the repository root:
#   docker build -f docker/train.Dockerfile -t detr-train .

FROM python:3.11.14-slim-bookworm AS packages
WORKDIR /build
COPY pyproject.toml constraints.txt ./
RUN python -m venv /venv \
    && /venv/bin/python -m pip install --no-cache-dir -c constraints.txt --upgrade pip \
    && /venv/bin/python -m pip install --no-cache-dir -c constraints.txt --group export

FROM python:3.11.14-slim-bookworm
WORKDIR /app
COPY --from=packages /venv /venv
COPY bundle/ bundle/
COPY model/ model/
COPY service/ service/
COPY export/ export/
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
CMD ["/venv/bin/python", "-m", "model.train", "--help"]
