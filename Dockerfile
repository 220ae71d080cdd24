# syntax=docker/dockerfile:1
# Three images of one checkout. They have not been built yet.
#
#   docker build --target train    -t megatron-ssd:train .       training and export on NVIDIA GPUs
#   docker build --target generate -t megatron-ssd:generate .    sampling and evaluation on NVIDIA GPUs
#   docker build --target cpu      -t megatron-ssd:cpu .         everything, without a GPU
#
# bubblewrap, which isolates graded programs, creates user namespaces. Docker's default profile forbids that; start
# evaluation with --security-opt seccomp=unconfined --security-opt apparmor=unconfined, or on a host that allows it.

# NGC PyTorch 26.01: Python 3.12, CUDA 13.1, torch 2.10, with TransformerEngine and NVIDIA's apex built against them.
FROM nvcr.io/nvidia/pytorch:26.01-py3 AS train
WORKDIR /opt/megatron-ssd
COPY requirements/train.txt requirements/train.txt
COPY tools/install_beside_torch.sh tools/install_beside_torch.sh
# Stops if it would change the image's torch. The lock's megatron-core 0.16.1 requires TransformerEngine 2.9 to 2.11; with
# another version the build stops here.
RUN tools/install_beside_torch.sh requirements/train.txt \
    && python -c "from importlib.metadata import version; \
found = version('transformer_engine'); \
assert (2, 9) <= tuple(map(int, found.split('+')[0].split('.')[:2])) < (2, 12), found"
COPY setup.py pyproject.toml LICENSE ./
COPY megatron_ssd megatron_ssd
RUN python -m pip install --no-cache-dir --no-deps --no-build-isolation --editable .
COPY launch launch
COPY hydra_configs hydra_configs
COPY tools tools
CMD ["python", "tools/doctor.py"]

# vLLM's own image: Python 3.12, CUDA 13, torch 2.13.0.
FROM vllm/vllm-openai:v0.32.0 AS generate
# Debian and Ubuntu remove superseded versions from their archives, so a pinned version would soon fail.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bubblewrap \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/megatron-ssd
COPY setup.py pyproject.toml LICENSE ./
COPY megatron_ssd megatron_ssd
RUN uv pip install --system --no-cache --editable .
COPY launch launch
COPY hydra_configs hydra_configs
COPY tools tools
ENTRYPOINT []
CMD ["python3", "tools/doctor.py"]

FROM python:3.11.14-slim-bookworm AS cpu
# vLLM compiles kernels with g++, and its own library needs libnuma.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bubblewrap g++ git libnuma1 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/megatron-ssd
COPY requirements/cpu.txt requirements/cpu.txt
# torch first, and from PyTorch's CPU index, so that no CUDA build is installed.
RUN python -m pip install --no-cache-dir --no-deps --index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu \
    && python -m pip install --no-cache-dir --no-deps --requirement requirements/cpu.txt
COPY setup.py pyproject.toml LICENSE ./
COPY megatron_ssd megatron_ssd
RUN python -m pip install --no-cache-dir --no-deps --no-build-isolation --editable .
COPY launch launch
COPY hydra_configs hydra_configs
COPY tools tools
CMD ["python", "tools/doctor.py"]
