# One image for a laptop, for Slurm (Apptainer, pyxis) and for Kubernetes:
#
#   docker build --build-arg COMMIT="$(git describe --always --dirty --abbrev=40 --exclude '*')" --tag lrtrain .
#   docker run --rm --gpus all -v "$PWD:/workspace" lrtrain fit --config quickstart
#
# Without CUDA: --build-arg TORCH_INDEX=URL of the package index with PyTorch's CPU builds (pytorch.org names it).

FROM python:3.11.14-slim-bookworm AS python

FROM python AS packages
ARG TORCH_INDEX=
ENV PATH=/opt/lrtrain/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
RUN python3 -m venv /opt/lrtrain
WORKDIR /build
COPY constraints.txt pyproject.toml ./
# What the project asks for and not yet the project: changing its code leaves this stage, gigabytes, as it is.
RUN python3 -c "import tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = project['optional-dependencies']; \
print(*project['dependencies'], *extras['hf'], *extras['eval'], *extras['s3'], sep='\n')" > requirements.txt
# torch from another index is held to that build. torchvision comes with litdata, for images, and would have to match it.
RUN if [ -n "$TORCH_INDEX" ]; then \
      PIP_INDEX_URL="$TORCH_INDEX" pip install --no-deps "$(grep '^torch==' constraints.txt)" && \
      pip freeze >> constraints.txt; \
    fi && \
    pip install --constraint constraints.txt --requirement requirements.txt && \
    pip uninstall --yes torchvision

FROM packages AS project
COPY . .
RUN pip install --no-deps --no-build-isolation --prefix /project .

FROM python
# A compiler: Triton and torch.compile build code when it is first run. tini: see the entry point.
# Versions are those of the base's Debian release, which keeps one of each package.
# hadolint ignore=DL3008
RUN apt-get update && \
    apt-get install --yes --no-install-recommends g++ tini && \
    apt-get clean && \
    rm -rf /var/lib/apt/lists/* /var/cache/debconf/*-old /var/log/apt /var/log/dpkg.log /var/log/alternatives.log
# Any user may run it, whatever its numbers and with a root file system that is read-only: these folders take what is
# written. As process 1 a program ignores SIGTERM until it has a handler of its own, so tini takes that place.
RUN useradd --uid 1000 --gid 0 --create-home lrtrain && \
    mkdir -p /workspace/runs /workspace/data && \
    chmod 1777 /home/lrtrain /workspace /workspace/runs /workspace/data && \
    printf '#!/bin/sh\n[ $$ = 1 ] && exec tini -- /opt/lrtrain/bin/lrtrain "$@"\nexec /opt/lrtrain/bin/lrtrain "$@"\n' \
      > /usr/local/bin/lrtrain && \
    chmod 755 /usr/local/bin/lrtrain
COPY --from=packages /opt/lrtrain /opt/lrtrain
COPY --from=project /project /opt/lrtrain
# A user without a line in /etc/passwd has a home and a name by these alone.
ENV HOME=/home/lrtrain \
    USER=lrtrain \
    PATH=/usr/local/bin:/opt/lrtrain/bin:$PATH \
    PYTHONUNBUFFERED=1
WORKDIR /workspace
VOLUME ["/workspace", "/home/lrtrain", "/tmp"]
USER 1000:0
ARG COMMIT=
ENV LRTRAIN_COMMIT=$COMMIT
LABEL org.opencontainers.image.title="lrtrain" \
      org.opencontainers.image.description="Pre-train language models whose weights are low-rank from the first step" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="$COMMIT"
ENTRYPOINT ["lrtrain"]
CMD ["--help"]
