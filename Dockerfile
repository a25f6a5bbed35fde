# For the nodes of a cluster, head and workers, as configs/rayjob.yaml names it: `docker build -t visionbake:0.1.0 .`
# Ray, Python and the C compiler that Triton needs are the base image's; torch brings its own CUDA.
ARG RAY=2.60.0-py311-gpu

FROM python:3.11-slim AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel . \
    && python -c 'import tomllib; t = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
print(*t["dependencies"], *t["optional-dependencies"]["s3"], sep="\n")' > /wheel/needed.txt

FROM rayproject/ray:${RAY}
# What is needed changes seldom, and is one layer of gigabytes; the package is another, of a megabyte.
COPY --from=wheel /wheel/needed.txt /tmp/
RUN pip install --no-cache-dir --requirement /tmp/needed.txt "ray[default]==$(python -c 'import ray; print(ray.__version__)')"
COPY --from=wheel /wheel/*.whl /tmp/
RUN pip install --no-cache-dir --no-deps /tmp/*.whl
COPY configs /visionbake/configs
# The base image's own user, by number: Kubernetes then sees that it is not root (`runAsNonRoot`). It could become root.
USER 0
RUN rm /usr/bin/sudo
USER 1000:100
WORKDIR /home/ray
