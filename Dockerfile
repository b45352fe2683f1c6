# syntax=docker/dockerfile:1
# One image for every part: `alcor api`, `alcor agent`, `alcor store init`, `nats-server`. Its base is pinned by digest:
#   docker buildx imagetools inspect python:3.11-slim-bookworm        prints the digest of today
#   docker buildx build --build-arg BASE=python@sha256:… --sbom=true --provenance=mode=max -t … .
# Without one the build ends at once. --sbom=true attaches an SPDX list of what the image holds; both stages are scanned.
ARG BASE=python@sha256:give-one-by---build-arg-BASE

FROM ${BASE} AS build
ARG BUILDKIT_SBOM_SCAN_STAGE=true
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/alcor
# Dependencies first, by hash: they change less often than the code.
COPY requirements-run.lock .
RUN /opt/alcor/bin/pip install --require-hashes --no-deps -r requirements-run.lock
COPY pyproject.toml README.md LICENSE ./
COPY api api
COPY planes planes
COPY agent agent
COPY observability observability
COPY cli cli
RUN /opt/alcor/bin/pip install --no-deps . && \
    /opt/alcor/bin/python -m compileall -q /opt/alcor/lib

FROM ${BASE}
LABEL org.opencontainers.image.title="Alcor Mesh" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.description="A cloud virtual-networking control plane"
# The agent's: the nftables library, ip, and setpriv, with which it gives up capabilities (util-linux).
RUN apt-get update && \
    apt-get install -y --no-install-recommends libnftables1 iproute2 util-linux && \
    rm -rf /var/lib/apt/lists/* && \
    groupadd --gid 10001 alcor && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent alcor && \
    install -d -o alcor -g alcor /var/lib/alcor
COPY --from=build /opt/alcor /opt/alcor
ENV PATH=/opt/alcor/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /var/lib/alcor
EXPOSE 9696
# For plain Docker; Kubernetes asks by the chart's probes. Other parts than the API: --no-healthcheck.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9696/healthz', timeout=4)"]
CMD ["alcor", "api"]
