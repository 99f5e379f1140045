# One image with the three static programs and nothing else: no shell, no libc, no package.
#
#   docker build -t ps:local .                        compiles inside (pulls rust:1.95-bookworm)
#   docker/build-static && docker build --target prebuilt -t ps:local .
#                                                     takes binaries built on this machine, pulls nothing
#
# The stages that pull stand after `prebuilt`: a builder that runs stages in order up to the target
# (docker without BuildKit) never reaches them then.
#
# The image starts a server. The other programs: --entrypoint /ps-worker, --entrypoint /psctl.

FROM scratch AS base
LABEL org.opencontainers.image.title="ps" \
      org.opencontainers.image.description="A networked parameter server: ps-server, ps-worker, psctl" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.source="https://github.com/ps-rs/ps"
COPY LICENSE LICENSE-MIT LICENSE-APACHE /licenses/
# Folders that belong to the user below: a new volume mounted here takes its owner over.
COPY --chown=65532:65532 docker/state/ /var/lib/ps/
COPY --chown=65532:65532 docker/state/ /var/lib/ps-checkpoints/
ENV PATH=/
WORKDIR /var/lib/ps
USER 65532:65532
EXPOSE 50051
STOPSIGNAL SIGTERM
# By address and not by name: /etc/hosts is the runtime's to give. A server with TLS needs its own.
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
  CMD ["/psctl", "health", "--server", "http://127.0.0.1:50051"]
ENTRYPOINT ["/ps-server"]

FROM base AS prebuilt
COPY docker/dist/ /

FROM rust:1.95-bookworm AS builder
WORKDIR /src
COPY . .
RUN docker/build-static

FROM base AS ps
ARG REVISION=unknown
LABEL org.opencontainers.image.revision="${REVISION}"
COPY --from=builder /src/docker/dist/ /
