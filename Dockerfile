ARG PYTHON=3.13

# ---- build: the worker and its packages in /opt/forwarder, nothing compiled, every package by its hash ----
FROM python:${PYTHON}-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /build

# Without pip of its own: what installs packages stays behind in this stage.
RUN python -m venv --without-pip /opt/forwarder
COPY requirements.txt ./
RUN python -m pip --python /opt/forwarder/bin/python install --require-hashes --only-binary :all: -r requirements.txt

COPY requirements-build.txt ./
RUN python -m pip install --require-hashes --only-binary :all: -r requirements-build.txt
COPY pyproject.toml README.md ./
COPY forwarder forwarder
RUN python -m pip wheel --no-deps --no-build-isolation --wheel-dir dist . && \
    python -m pip --python /opt/forwarder/bin/python install --no-deps dist/*.whl

# ---- the image ----
FROM python:${PYTHON}-slim
LABEL org.opencontainers.image.title="forwarder" \
      org.opencontainers.image.description="A Celery worker that forwards queued tasks to an inference server"

# hadolint ignore=DL3008
RUN apt-get update && \
    apt-get install --yes --no-install-recommends tini && \
    rm -rf /var/lib/apt/lists/* && \
    groupadd --gid 10001 forwarder && \
    useradd --uid 10001 --gid forwarder --no-create-home --home-dir /tmp --shell /usr/sbin/nologin forwarder

COPY --from=build /opt/forwarder /opt/forwarder
COPY deploy/container/entry.sh /usr/local/bin/forwarder-entry

# Bytecode was written in the build stage; the root file system may be read-only, /tmp should not be.
# What ddtrace does for the views of web frameworks only holds up forks where its agent never answers.
ENV PATH=/opt/forwarder/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    DD_CODE_ORIGIN_FOR_SPANS_ENABLED=false \
    FORWARDER_HTTP_PORT=9109 \
    FORWARDER_LOG_FORMAT=json
# By number: Kubernetes can't tell from a name that it isn't root (runAsNonRoot).
USER 10001:10001
WORKDIR /tmp
EXPOSE 9109

# Docker's own; Kubernetes ignores it and probes /livez and /readyz.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s CMD ["forwarder", "check", "--live"]

# Never tini -g: SIGTERM is for the main process alone, prefork's children end when it says so.
ENTRYPOINT ["tini", "--", "forwarder-entry"]
