# syntax=docker/dockerfile:1
# The `pipeline` command alone: no shell, no package manager, not root; it writes nothing, so --read-only is fine.
#
#   docker build --build-arg LADDER_COMMIT="$(git rev-parse --short=12 HEAD)" --tag retry-ladder .
#   docker run --rm --read-only retry-ladder demo
#   docker run --rm --read-only --volume "$PWD/topics.yaml:/etc/retry-ladder/topics.yaml:ro" retry-ladder --stage main
#
# No HEALTHCHECK: nothing in the image could ask, and who runs it asks /livez and /readyz by itself (deploy/kubernetes).

FROM rust:1.95.0-slim-bookworm AS build
# For librdkafka, OpenSSL and zstd, which are built from source. Debian keeps only the newest version of a package.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ make perl \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
ARG LADDER_COMMIT=unknown
# Without line tables the binary is a quarter of its size; backtraces still name functions.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    CARGO_PROFILE_RELEASE_STRIP=debuginfo cargo build --locked --release --bin pipeline \
    && cp target/release/pipeline /pipeline

# The binary needs glibc and libgcc_s of the same Debian, and TLS the certificates of public authorities.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /pipeline /usr/local/bin/pipeline
# Where topics.yaml is looked for.
WORKDIR /etc/retry-ladder
# The default, loopback, cannot be reached from outside of a container.
ENV PIPELINE_ADMIN__LISTEN=0.0.0.0:9464
EXPOSE 9464
USER 65532:65532
ENTRYPOINT ["pipeline"]
