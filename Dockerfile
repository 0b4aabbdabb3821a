# owl2 in a container, for a CPU or for NVIDIA GPUs:
#
#   docker build --tag owl2 .
#   docker build --tag owl2:cuda --build-arg DEVICE=cuda .
#
# pip reads where packages come from in its own variables. The CPU build of PyTorch is not on the default index, so for it
# PIP_EXTRA_INDEX_URL must name PyTorch's index of CPU wheels (--build-arg PIP_EXTRA_INDEX_URL=...), or PIP_FIND_LINKS a
# folder of wheels; without them `--build-arg DEVICE=cuda` gives an image that runs on CPUs as well, but is larger.
ARG PYTHON=3.12-slim
FROM python:${PYTHON}

ARG DEVICE=cpu
ARG TORCH=2.13.0
ARG EXTRAS=data,endpoint,eval,http,lora,qlora,s3,train,video,wandb
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_WAIT_POLICY=PASSIVE

# First what changes least, so that a change of the code builds in seconds.
RUN case "$DEVICE" in \
      cpu) pip install "torch==$TORCH+cpu" ;; \
      cuda) pip install "torch==$TORCH" ;; \
      *) echo "DEVICE is cpu or cuda, not $DEVICE" >&2; exit 1 ;; \
    esac

COPY pyproject.toml README.md LICENSE /src/
COPY owl2 /src/owl2
RUN pip install "/src[$EXTRAS]"

# Python is the first process and hears SIGTERM itself. A volume at /home/owl2 keeps data, runs and the cache.
RUN useradd --create-home owl2
USER owl2
WORKDIR /home/owl2
ENTRYPOINT ["owl2"]
CMD ["--help"]
