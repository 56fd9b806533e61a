# Images of gti-rec.
#
#   docker build -t gti-rec:cpu .                            the service on CPUs (the default target)
#   docker build -t gti-rec:training --target training .     the same packages, starting `python -m training`
#   docker build -t gti-rec:gpu --target gpu .               the service on NVIDIA GPUs
#
# Packages come from the lock files with --no-deps, torch first, as in requirements/install.py. The layers
# that take minutes depend on the lock files alone; a change of the code rebuilds the last small ones.
# Every image runs as uid 10001 on a read-only root file system: it writes to /cache (compile caches),
# /data (the private Redis), /tmp and, for training, /runs. How the builds are checked: .ci/images.
#
# A bill of materials: `docker buildx build --sbom=true --provenance=true ...` attaches one to the image, Debian's
# packages included; `make sbom` writes one of the Python packages that the same lock files install.
# requirements/LICENCES.md is the short form.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# --- what every image starts from ------------------------------------------------------------------
FROM ${PYTHON_IMAGE} AS base
LABEL org.opencontainers.image.title="gti-rec" \
      org.opencontainers.image.description="Recommendations written by a language model as semantic IDs" \
      org.opencontainers.image.licenses="Apache-2.0"
# Whatever looks for a home directory finds a writable one, whichever uid the container gets.
ENV PATH=/opt/gti-rec/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/cache \
    VLLM_CACHE_ROOT=/cache/vllm \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    TRITON_CACHE_DIR=/cache/triton \
    VLLM_NO_USAGE_STATS=1
# vLLM's CPU kernels are linked to libnuma; tini reaps the engine's processes and passes signals on.
# The base image's tag fixes the Debian release; single package versions vanish from its mirrors.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libnuma1 tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
    && groupadd --gid 10001 gtirec \
    && useradd --uid 10001 --gid 10001 --home-dir /cache --no-create-home --shell /usr/sbin/nologin gtirec \
    && install -d -o gtirec -g gtirec /app /bundle /cache /data /runs
WORKDIR /app

# --- packages for CPUs -----------------------------------------------------------------------------
FROM base AS packages-cpu
# What is removed serves only whoever compiles against torch, and no image has a C++ compiler: 120 MB.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY requirements/torch.txt requirements/
RUN python -m venv /opt/gti-rec \
    && torch="$(sed -n 's/^torch==//p' requirements/torch.txt)" \
    && pip install --no-cache-dir --no-deps --index-url "${TORCH_INDEX}" "torch==${torch}+cpu" \
    && package="$(echo /opt/gti-rec/lib/python3.*/site-packages/torch)" \
    && find "${package}/bin" -type f ! -name torch_shm_manager -delete \
    && rm -rf "${package:?}/include" "${package:?}/test"
COPY requirements/cpu-x86_64.txt requirements/cpu-aarch64.txt requirements/
RUN pip install --no-cache-dir --no-deps --requirement "requirements/cpu-$(uname -m).txt"

# --- packages for NVIDIA GPUs: torch's CUDA build stands in the lock ---------------------------------
FROM base AS packages-gpu
COPY requirements/gpu.txt requirements/
RUN python -m venv /opt/gti-rec \
    && pip install --no-cache-dir --no-deps --requirement requirements/gpu.txt

# --- the project, as a wheel that both kinds install -------------------------------------------------
FROM base AS wheel
COPY requirements/gpu.txt requirements/
RUN python -m venv /opt/gti-rec \
    && pip install --no-cache-dir --no-deps "$(grep -o '^setuptools==[^ ]*' requirements/gpu.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY training training
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

# --- training on CPUs: runs go to /runs --------------------------------------------------------------
FROM base AS training
COPY --from=packages-cpu /opt/gti-rec /opt/gti-rec
COPY training/recipes recipes
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --no-deps --no-index /wheels/*.whl
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
VOLUME ["/cache", "/runs"]
USER 10001:10001
ENTRYPOINT ["tini", "--", "python", "-m", "training"]
CMD ["--help"]

# --- what both service images say --------------------------------------------------------------------
FROM base AS service
# Listening on every address without GTIREC_API_KEY or GTIREC_ALLOW_ANONYMOUS=true is refused at start.
ENV GTIREC_HOST=0.0.0.0 \
    GTIREC_PORT=8000 \
    GTIREC_BUNDLE=/bundle \
    GTIREC_DATA_DIR=/data \
    HF_HUB_OFFLINE=1
VOLUME ["/cache", "/data"]
EXPOSE 8000
STOPSIGNAL SIGTERM
# Ready means: a constrained request was answered and verified. Loading takes up to a minute on two cores,
# minutes for a model of several billion parameters.
HEALTHCHECK --interval=5s --timeout=5s --start-period=600s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['GTIREC_PORT'] + '/readyz', timeout=4)"]
ENTRYPOINT ["tini", "--", "python", "-m", "service"]
CMD ["serve"]

# --- GPU service -------------------------------------------------------------------------------------
FROM service AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Triton compiles its kernels at run time.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
COPY --from=packages-gpu /opt/gti-rec /opt/gti-rec
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --no-deps --no-index /wheels/*.whl
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 10001:10001

# --- CPU service, the default ------------------------------------------------------------------------
FROM service AS cpu
COPY --from=packages-cpu /opt/gti-rec /opt/gti-rec
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --no-deps --no-index /wheels/*.whl
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 10001:10001
