# Takes programs that are built already (make image): the context holds just them.
# BASE needs glibc, libgcc and CA certificates, no newer toolchain than the builder's.
ARG BASE=debian:bookworm-slim
FROM ${BASE}
COPY ottoscaler ottoctl /usr/local/bin/
USER 65532:65532
EXPOSE 9090
ENTRYPOINT ["/usr/local/bin/ottoscaler"]
