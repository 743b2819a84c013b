# The project in a container that is a Ray head started in the project root.
#   docker build --target cpu  -t polymer-foundation:cpu  .        # torch without CUDA
#   docker build --target cuda -t polymer-foundation:cuda .        # torch with CUDA libraries; the driver comes from the host
#   docker run -d --name head --shm-size=4g -v $PWD/runs:/home/polymer/polymer-foundation/runs polymer-foundation:cpu      (cuda: --gpus all)
#   docker exec head ray job submit cluster/smoke.yaml
#   docker exec head ray job submit cluster/pretrain.yaml
# runs/ on the host must be writable for user 1000. cluster/kuberay.yaml uses the same image.

FROM python:3.11-slim-bookworm AS project
RUN apt-get update \
    && apt-get install -y --no-install-recommends git make procps wget \
    && rm -rf /var/lib/apt/lists/*
# a login shell, which KubeRay may use, sets PATH anew
RUN echo 'PATH=/home/polymer/polymer-foundation/.venv/bin:$PATH' > /etc/profile.d/polymer-foundation.sh
RUN useradd --create-home --uid 1000 --shell /bin/bash polymer
USER polymer
WORKDIR /home/polymer/polymer-foundation
COPY --chown=polymer:polymer . .
RUN mkdir -p runs shards
ENV PATH=/home/polymer/polymer-foundation/.venv/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0
# GCS, dashboard and jobs
EXPOSE 6379 8265
# The token lies in the container's home, where `docker exec` finds it; RAY_AUTH_TOKEN from outside wins. exec: signals reach Ray.
CMD ["sh", "-c", "ray get-auth-token --generate >/dev/null && exec ray start --head --block --disable-usage-stats"]

FROM project AS cpu
RUN make install TORCH_INDEX=https://download.pytorch.org/whl/cpu

FROM project AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN make install
