# The service: no torch, no compiler, no root. Build from the repository root:
#   docker build -f docker/service.Dockerfile -t detr-serve .

# This stage has a compiler, for the native kernels.
FROM python:3.11.14-bookworm AS packages
WORKDIR /build
COPY pyproject.toml constraints.txt ./
RUN python -m venv /venv \
    && /venv/bin/python -m pip install --no-cache-dir -c constraints.txt --upgrade pip \
    && /venv/bin/python -m pip install --no-cache-dir -c constraints.txt --group service --group tracing \
    && /venv/bin/python -m pip uninstall --yes pip
COPY plugins/ plugins/
RUN /venv/bin/python -m plugins.build

FROM python:3.11.14-slim-bookworm
WORKDIR /app
COPY --from=packages /venv /venv
COPY bundle/ bundle/
COPY engines/ engines/
COPY service/ service/
COPY plugins/ plugins/
COPY --from=packages /build/build/plugins/ build/plugins/
COPY bundles/demo/ bundles/demo/
# The root file system may be read-only: nothing is written, not even byte code.
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# Listens on every interface of the container; the port mapping decides what outsiders can reach.
ENV DETR_HOST=0.0.0.0 DETR_PORT=8000 DETR_BUNDLE=bundles/demo
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["/venv/bin/python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['DETR_PORT'] + '/readyz', timeout=2)"]
CMD ["/venv/bin/python", "-m", "service"]
