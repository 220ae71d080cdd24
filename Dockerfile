# syntax=docker/dockerfile:1
# Three images of one checkout, one for each kind of stage. docs/guides/cluster.md says which have been built.
#
#   docker build --target train    -t megatron-ssd:train .       data set, training and export on NVIDIA GPUs
#   docker build --target generate -t megatron-ssd:generate .    every other stage on NVIDIA GPUs
#   docker build --target cpu      -t megatron-ssd:cpu .         all stages, without a GPU
#
# Dependencies come before the code, so an edit of the code builds only the last layers. Nothing runs as root: a run is
# written to /opt/megatron-ssd/runs, which any user may write, or to a folder that is mounted.
#
# bubblewrap, which isolates graded programs, creates user namespaces. Docker's default profile forbids that; start
# evaluation with --security-opt seccomp=unconfined --security-opt apparmor=unconfined, or on a host that allows it.

# NGC PyTorch 26.01: Python 3.12, CUDA 13.1, torch 2.10, with TransformerEngine and NVIDIA's apex built against them.
FROM nvcr.io/nvidia/pytorch:26.01-py3 AS train
COPY requirements/train.txt tools/install_beside_torch.sh /tmp/install/
# Stops if it would change the image's torch. The lock's megatron-core 0.16.1 requires TransformerEngine 2.9 to 2.11; with
# another version the build stops here.
RUN /tmp/install/install_beside_torch.sh /tmp/install/train.txt \
    && python -c "from importlib.metadata import version; \
found = version('transformer_engine'); \
assert (2, 9) <= tuple(map(int, found.split('+')[0].split('.')[:2])) < (2, 12), found"
RUN useradd --create-home --uid 10001 ssd && install --directory --mode=1777 /opt/megatron-ssd/runs
WORKDIR /opt/megatron-ssd
ENV PYTHONPATH=/opt/megatron-ssd
COPY . .
USER 10001
CMD ["python", "tools/doctor.py"]

# vLLM's own image: Python 3.12, CUDA 13, torch 2.13.0.
FROM vllm/vllm-openai:v0.32.0 AS generate
# Debian and Ubuntu remove superseded versions from their archives, so a pinned version would soon fail.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bubblewrap libnuma1 \
    && rm -rf /var/lib/apt/lists/*
COPY requirements/generate.txt tools/install_beside_torch.sh /tmp/install/
# Stops if it would change the image's torch or vLLM.
RUN PYTHON=python3 /tmp/install/install_beside_torch.sh /tmp/install/generate.txt
RUN useradd --create-home --uid 10001 ssd && install --directory --mode=1777 /opt/megatron-ssd/runs
WORKDIR /opt/megatron-ssd
ENV PYTHONPATH=/opt/megatron-ssd
COPY . .
USER 10001
ENTRYPOINT []
CMD ["python3", "tools/doctor.py"]

FROM python:3.11.14-slim-bookworm AS cpu
# vLLM compiles kernels with g++, and its own library needs libnuma.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bubblewrap g++ git libnuma1 \
    && rm -rf /var/lib/apt/lists/*
COPY requirements/cpu.txt /tmp/install/
# torch first, and from PyTorch's CPU index, so that no CUDA build is installed.
RUN python -m pip install --no-cache-dir --no-deps --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu \
    && python -m pip install --no-cache-dir --no-deps --requirement /tmp/install/cpu.txt
# vLLM starts without its own library, and would fail when it starts a model.
RUN python -c "import torch, vllm; from vllm.platforms import current_platform as platform; \
platform.import_kernels(); torch.ops._C.init_cpu_memory_env"
RUN useradd --create-home --uid 10001 ssd && install --directory --mode=1777 /opt/megatron-ssd/runs
WORKDIR /opt/megatron-ssd
ENV PYTHONPATH=/opt/megatron-ssd
COPY . .
USER 10001
CMD ["python", "tools/doctor.py"]
