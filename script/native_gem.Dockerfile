# Where .github/workflows/release.yml runs `rake gem:native`: two Rubies and Rust. BASE is slim-bookworm (glibc) or alpine (musl).
ARG BASE=slim-bookworm
FROM ruby:3.4-${BASE} AS older
FROM ruby:4.0-${BASE}

# Both lie in /usr/local, in files that have the version in their names, but for one.
COPY --from=older /usr/local/bin/ruby /usr/local/bin/ruby3.4
COPY --from=older /usr/local/lib/libruby.so.3.4* /usr/local/lib/
COPY --from=older /usr/local/lib/ruby/3.4.0 /usr/local/lib/ruby/3.4.0
COPY --from=older /usr/local/include/ruby-3.4.0 /usr/local/include/ruby-3.4.0

RUN if command -v apk; then apk add --no-cache build-base clang-dev curl tar; \
    else apt-get update && apt-get install -y --no-install-recommends build-essential libclang-dev curl ca-certificates; fi
RUN curl --proto =https -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain 1.95.0
ENV PATH=/root/.cargo/bin:$PATH
# By itself Rust links musl statically: it makes no library then that Ruby can load, and bindgen cannot load libclang.
ENV CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_RUSTFLAGS="-C target-feature=-crt-static" \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUSTFLAGS="-C target-feature=-crt-static"
