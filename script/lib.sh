# Shared by the scripts beside it; sourced, not run.

set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
CACHE="${XDG_CACHE_HOME:-$HOME/.cache}/uringmachine"
LEAST_RUBY=3.4

say() { printf '==> %s\n' "$*" >&2; }

die() {
  printf 'error: %s\n' "$1" >&2
  shift
  for line in "$@"; do printf '       %s\n' "$line" >&2; done
  exit 1
}

# Runs a long command with its output in a log, and a line of progress every few seconds.
with_progress() {
  local name="$1" log="$2"
  shift 2
  say "$name (log: $log)"
  local start=$SECONDS pid
  "$@" >"$log" 2>&1 &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    sleep 1
    (((SECONDS - start) % 15 == 0)) && printf '    %s: %d s, %d lines\n' "$name" "$((SECONDS - start))" "$(wc -l <"$log")" >&2
  done
  wait "$pid" || die "$name failed; the end of $log:" "$(tail -n 15 "$log")"
  printf '    %s: done in %d s\n' "$name" "$((SECONDS - start))" >&2
}

check_platform() {
  [ "$(uname -s)" = Linux ] || die "uringmachine runs on Linux only: io_uring is a Linux interface."
  case "$(uname -m)" in
    x86_64 | aarch64) ;;
    *) die "the processor $(uname -m) is not supported; uringmachine is built for x86_64 and aarch64." ;;
  esac
  local version major minor
  version="$(uname -r)"
  IFS=. read -r major minor _ <<<"$version"
  minor="${minor%%[!0-9]*}"
  if ((major < 6 || (major == 6 && minor < 1))); then
    die "Linux $version is too old; uringmachine needs 6.1 or newer."
  fi
  local disabled=/proc/sys/kernel/io_uring_disabled
  if [ -r "$disabled" ] && [ "$(cat "$disabled")" != 0 ]; then
    [ "$(id -u)" = 0 ] && [ "$(cat "$disabled")" = 1 ] ||
      die "io_uring is disabled: kernel.io_uring_disabled = $(cat "$disabled")." \
        "Allow it with: sysctl -w kernel.io_uring_disabled=0"
  fi
  command -v cargo >/dev/null || die "cargo is missing." "Install Rust 1.85 or newer: https://rustup.rs"
}

# Debian packages that are missing, installed when we may, named when we may not.
need_packages() {
  command -v dpkg-query >/dev/null || return 0
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  local sudo=()
  if [ "$(id -u)" != 0 ]; then
    sudo -n true 2>/dev/null || die "packages are missing: ${missing[*]}" "Install them with: sudo apt-get install ${missing[*]}"
    sudo=(sudo -n)
  fi
  say "installing packages: ${missing[*]}"
  "${sudo[@]}" apt-get update -qq || die "apt-get update failed; is the network there?"
  DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
    die "apt-get could not install: ${missing[*]}" "Is the network there, and are the sources of apt right?"
}

is_recent_ruby() {
  [ -n "$1" ] && "$1" -e "exit Gem::Version.new(RUBY_VERSION) >= Gem::Version.new('$LEAST_RUBY')" 2>/dev/null
}

# The Ruby to use: $RUBY, one on PATH, or one in the cache. Prints nothing if there is none.
find_ruby() {
  if [ -n "${RUBY:-}" ]; then
    local given
    given="$(command -v "$RUBY" || true)"
    is_recent_ruby "$given" || die "RUBY=$RUBY is not a Ruby of version $LEAST_RUBY or newer."
    echo "$given"
    return
  fi
  local candidate
  for candidate in "$(command -v ruby || true)" "$CACHE"/ruby-*/bin/ruby; do
    if [ -x "$candidate" ] && is_recent_ruby "$candidate"; then
      echo "$candidate"
      return
    fi
  done
}

# apt with lists of its own, so that the system's stay as they are. $1: "deb" or "deb-src"; $2…: suites.
private_apt() {
  local kind="$1" suite
  shift
  local mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  command -v apt-get >/dev/null || die "apt-get is missing, and no Ruby >= $LEAST_RUBY was found." "Install one, or name it: RUBY=/path/to/ruby $0"
  [ -r "$keyring" ] || die "$keyring is missing (package debian-archive-keyring)."
  mirror="$( (grep -hE '^URIs:' /etc/apt/sources.list.d/*.sources 2>/dev/null | awk '{print $2}'
    grep -hE '^deb ' /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null | grep -oE 'https?://[^ ]+') |
    grep -E '/debian/?$' | head -n 1 || true)"
  [ -n "$mirror" ] || die "no mirror of Debian is configured in /etc/apt, so Ruby cannot be taken from there." "Name one: RUBY=/path/to/ruby $0"
  APT="$CACHE/apt-$kind"
  mkdir -p "$APT/lists/partial" "$APT/archives/partial"
  : >"$APT/sources.list"
  for suite in "$@"; do
    printf '%s [signed-by=%s] %s %s main\n' "$kind" "$keyring" "$mirror" "$suite" >>"$APT/sources.list"
  done
  APT_OPTIONS=(-o "Dir::Etc::sourcelist=$APT/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$APT/lists"
    -o "Dir::Cache=$APT" -o APT::Sandbox::User=root)
  apt-get "${APT_OPTIONS[@]}" update -qq >&2 || die "Debian's package lists could not be fetched from $mirror; is the network there?"
}

# Where a built extension is, by Ruby, and by the features of cargo that UM_FEATURES names.
describe_ruby() {
  "$1" -e 'puts ["#{RUBY_ENGINE}-#{RUBY_VERSION}-#{RUBY_PLATFORM}", ENV["UM_FEATURES"].to_s].reject(&:empty?).join("-")'
}
