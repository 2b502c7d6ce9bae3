# Takes programs that are built already: the context holds them in bin/ (make image).
# BASE needs glibc (no older than the builder's), libgcc and CA certificates.
ARG BASE=debian:bookworm-slim
FROM ${BASE}
COPY bin/ /usr/local/bin/
USER 65532:65532
EXPOSE 9090
ENTRYPOINT ["/usr/local/bin/ottoscaler"]
