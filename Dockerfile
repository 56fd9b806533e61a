# Images of gti-rec.
#
#   docker build -t gti-rec:cpu .                            the service on CPUs (the default target)
#   docker build -t gti-rec:training --target training .     the same packages, starting `python -m training`
#   docker build -t gti-rec:gpu --target gpu .               the service on NVIDIA GPUs
#
# Packages come from the lock files with --no-deps, torch first, as in requirements/install.py. The layers
# that take minutes depend on the lock files alone; a change of the code rebuilds the last small one.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# --- what every image starts from ------------------------------------------------------------------
FROM ${PYTHON_IMAGE} AS base
ENV PATH=/opt/gti-rec/bin:$PATH \
    PYTHONUNBUFFERED=1
# vLLM's CPU kernels are linked to libnuma; tini reaps the engine's processes and passes signals on.
# The base image's tag fixes the Debian release; single package versions vanish from its mirrors.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libnuma1 tini \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 gtirec \
    && useradd --uid 10001 --gid 10001 --create-home --shell /usr/sbin/nologin gtirec \
    && install -d -o gtirec -g gtirec /app /bundle /cache /data /runs
WORKDIR /app

# --- packages for CPUs -----------------------------------------------------------------------------
FROM base AS packages-cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY requirements/torch.txt requirements/
RUN python -m venv /opt/gti-rec \
    && torch="$(sed -n 's/^torch==//p' requirements/torch.txt)" \
    && pip install --no-cache-dir --no-deps --index-url "${TORCH_INDEX}" "torch==${torch}+cpu" \
    && rm -rf /opt/gti-rec/lib/python3.*/site-packages/torch/test
COPY requirements/cpu-x86_64.txt requirements/cpu-aarch64.txt requirements/
RUN pip install --no-cache-dir --no-deps --requirement "requirements/cpu-$(uname -m).txt"

# --- packages for NVIDIA GPUs: torch's CUDA build stands in the lock ---------------------------------
FROM base AS packages-gpu
COPY requirements/gpu.txt requirements/
RUN python -m venv /opt/gti-rec \
    && pip install --no-cache-dir --no-deps --requirement requirements/gpu.txt

# --- the project, as a wheel that both kinds install -------------------------------------------------
FROM packages-cpu AS wheel
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY training training
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

# --- GPU service -------------------------------------------------------------------------------------
FROM base AS gpu
# Triton compiles its kernels at run time.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=packages-gpu /opt/gti-rec /opt/gti-rec
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --no-deps --no-index /wheels/*.whl
ENV GTIREC_HOST=0.0.0.0 \
    GTIREC_PORT=8000 \
    GTIREC_BUNDLE=/bundle \
    GTIREC_DATA_DIR=/data \
    HF_HUB_OFFLINE=1 \
    VLLM_NO_USAGE_STATS=1 \
    XDG_CACHE_HOME=/cache \
    XDG_CONFIG_HOME=/cache/config \
    VLLM_CACHE_ROOT=/cache/vllm \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    TRITON_CACHE_DIR=/cache/triton \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['GTIREC_PORT'] + '/readyz', timeout=4)"]
ENTRYPOINT ["tini", "--", "python", "-m", "service"]
CMD ["serve"]

# --- project on CPU packages -------------------------------------------------------------------------
FROM base AS project-cpu
COPY --from=packages-cpu /opt/gti-rec /opt/gti-rec
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --no-deps --no-index /wheels/*.whl
ENV VLLM_NO_USAGE_STATS=1 \
    XDG_CACHE_HOME=/cache \
    XDG_CONFIG_HOME=/cache/config \
    MPLCONFIGDIR=/cache/matplotlib \
    VLLM_CACHE_ROOT=/cache/vllm \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor

# --- training on CPUs: runs go to /runs --------------------------------------------------------------
FROM project-cpu AS training
COPY training/recipes recipes
USER 10001:10001
ENTRYPOINT ["tini", "--", "python", "-m", "training"]
CMD ["--help"]

# --- CPU service, the default ------------------------------------------------------------------------
FROM project-cpu AS cpu
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="gti-rec" \
      org.opencontainers.image.description="Recommendations written by a language model as semantic IDs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# Listening on every address without GTIREC_API_KEY or GTIREC_ALLOW_ANONYMOUS=true is refused at start.
ENV GTIREC_HOST=0.0.0.0 \
    GTIREC_PORT=8000 \
    GTIREC_BUNDLE=/bundle \
    GTIREC_DATA_DIR=/data \
    HF_HUB_OFFLINE=1
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# Ready means: a constrained request was answered and verified. Loading takes up to a minute on two cores.
HEALTHCHECK --interval=5s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['GTIREC_PORT'] + '/readyz', timeout=4)"]
ENTRYPOINT ["tini", "--", "python", "-m", "service"]
CMD ["serve"]
