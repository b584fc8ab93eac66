# Two images from one file:
#   docker build --target cpu -t comfyfn:cpu .     the embedded engine, and the API service (ENGINE=none)
#   docker build --target gpu -t comfyfn:gpu .     ComfyUI on one NVIDIA GPU
# Pin the base by its digest: --build-arg PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm@sha256:...
# Both run as uid 10001 on a read-only root with volumes at /data and /tmp.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS base
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates curl \
    && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10001 comfyfn \
    && useradd --uid 10001 --gid comfyfn --home-dir /data --no-create-home --shell /usr/sbin/nologin comfyfn \
    && install -d -o comfyfn -g comfyfn /data \
    && ln -s /opt/comfyfn/bin/comfyfn /usr/local/bin/comfyfn
ENV HOME=/data \
    DATA_DIR=/data \
    PORT=3000 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

# What the lock file names, and nothing else: no resolving, no build isolation, every hash checked.
FROM base AS function
WORKDIR /src
COPY requirements.lock ./
RUN python3 -m venv /opt/comfyfn \
    && /opt/comfyfn/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY events events
COPY function function
RUN /opt/comfyfn/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

# ComfyUI with a Python environment of its own: its packages and those of custom nodes never meet the function's.
FROM base AS comfyui
ARG COMFYUI_VERSION=v0.3.64
ARG COMFYUI_REPOSITORY=https://github.com/comfyanonymous/ComfyUI
ARG TORCH_VERSION=2.8.0
ARG TORCHVISION_VERSION=0.23.0
ARG TORCHAUDIO_VERSION=2.8.0
# The CUDA runtime comes with PyTorch's packages; the driver is the node's.
ARG CUDA=cu128
ARG PYTORCH_INDEX=https://download.pytorch.org/whl
ARG MANIFEST=image/manifest.json
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential git python3-dev \
    && rm -rf /var/lib/apt/lists/*
RUN git clone --depth 1 --branch "${COMFYUI_VERSION}" "${COMFYUI_REPOSITORY}" /opt/ComfyUI \
    && rm -rf /opt/ComfyUI/.git
RUN python3 -m venv /opt/comfyui \
    && printf 'torch==%s\ntorchvision==%s\ntorchaudio==%s\n' \
        "${TORCH_VERSION}" "${TORCHVISION_VERSION}" "${TORCHAUDIO_VERSION}" > /opt/comfyui/constraints.txt \
    && /opt/comfyui/bin/pip install --no-cache-dir --index-url "${PYTORCH_INDEX}/${CUDA}" \
        -r /opt/comfyui/constraints.txt \
    && /opt/comfyui/bin/pip install --no-cache-dir --constraint /opt/comfyui/constraints.txt \
        -r /opt/ComfyUI/requirements.txt
COPY image/bake.py /bake/
COPY ${MANIFEST} /bake/manifest.json
RUN python3 /bake/bake.py apt /bake/manifest.json \
    && python3 /bake/bake.py pip /bake/manifest.json --python /opt/comfyui/bin/python \
        --constraint /opt/comfyui/constraints.txt \
    && python3 /bake/bake.py nodes /bake/manifest.json --python /opt/comfyui/bin/python \
        --constraint /opt/comfyui/constraints.txt --directory /opt/ComfyUI/custom_nodes

FROM base AS gpu
LABEL org.opencontainers.image.title="comfyfn" \
      org.opencontainers.image.description="ComfyUI workflows as a serverless function, on one GPU" \
      org.opencontainers.image.licenses="MIT AND GPL-3.0-only"
ARG MANIFEST=image/manifest.json
COPY image/bake.py /bake/
COPY ${MANIFEST} /bake/manifest.json
RUN python3 /bake/bake.py apt /bake/manifest.json
COPY --from=comfyui /opt/comfyui /opt/comfyui
COPY --from=comfyui /opt/ComfyUI /opt/ComfyUI
COPY --from=function /opt/comfyfn /opt/comfyfn
# ComfyUI can write nothing beside itself: the function sees to it, whatever CMD is, that its users' files, database and
# temporary files lie in DATA_DIR.
ENV PATH=/opt/comfyui/bin:${PATH} \
    ENGINE=comfyui \
    COMFY_HOME=/opt/ComfyUI \
    CMD="python main.py --listen 127.0.0.1" \
    MODEL_DIR=/data/models \
    INPUT_DIR=/data/input \
    OUTPUT_DIR=/data/output \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
EXPOSE 3000
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["/bin/sh", "-c", "curl -fsS http://127.0.0.1:${PORT}/health"]
ENTRYPOINT ["/opt/comfyfn/bin/comfyfn"]
CMD ["serve"]

FROM base AS cpu
LABEL org.opencontainers.image.title="comfyfn" \
      org.opencontainers.image.description="ComfyUI workflows as a serverless function: embedded CPU engine, API service" \
      org.opencontainers.image.licenses="MIT"
COPY --from=function /opt/comfyfn /opt/comfyfn
USER 10001:10001
EXPOSE 3000
HEALTHCHECK --interval=30s --timeout=10s --start-period=10s --retries=3 \
    CMD ["/bin/sh", "-c", "curl -fsS http://127.0.0.1:${PORT}/health"]
ENTRYPOINT ["/opt/comfyfn/bin/comfyfn"]
CMD ["serve"]
