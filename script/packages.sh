# What is taken from Debian's packages into folders of our own: gems in pure Ruby, and valgrind; sourced by the scripts beside it.

GEMS="$CACHE/gems"

# Where script/compat puts the gems that it compiles for a Ruby.
native_gems() {
  echo "$CACHE/native/$(describe_ruby "$1")"
}

# The GEM_PATH with which a Ruby finds its own gems, those taken from Debian, and those compiled.
gem_path() {
  local ruby="$1"
  printf '%s:%s:%s' "$(GEM_PATH='' "$ruby" -e 'puts Gem.default_dir')" "$GEMS/usr/share/rubygems-integration/all" "$(native_gems "$ruby")"
}

# Unpacks packages into a folder of ours. $1: the folder; $2: the release of Debian; $3…: the packages.
fetch_packages() {
  local folder="$1"
  private_apt deb "$2"
  shift 2
  mkdir -p "$folder"
  local package work
  work="$(mktemp -d "$CACHE/packages.XXXXXX")"
  for package in "$@"; do
    (cd "$work" && apt-get "${APT_OPTIONS[@]}" download -qq "$package" >&2) || die "Debian's package $package could not be fetched; is the network there?"
  done
  for package in "$work"/*.deb; do dpkg -x "$package" "$folder"; done
  rm -rf "$work"
}

# $1: the release of Debian; $2…: its packages, arch:all.
fetch_gems() {
  fetch_packages "$GEMS" "$@"
}

# Async, what it stands on, and its HTTP and WebSocket. Of io-event only what is Ruby.
fetch_async() {
  [ -e "$GEMS/async" ] && return
  say "taking Async from Debian"
  fetch_gems forky ruby-async{,-http,-pool,-websocket} ruby-console ruby-fiber-{annotation,storage,local} ruby-io-{event,endpoint,stream} \
    ruby-{metrics,traces,json} ruby-protocol-{http,http1,http2,hpack,url,rack,websocket} &&
    touch "$GEMS/async"
}

# The same, of what is not there yet. $1: the release of Debian; $2…: its packages.
need_debian_gems() {
  local suite="$1" missing=() package
  shift
  for package in "$@"; do [ -e "$GEMS/fetched/$package" ] || missing+=("$package"); done
  ((${#missing[@]})) || return 0
  say "taking gems from Debian $suite: ${missing[*]}"
  fetch_gems "$suite" "${missing[@]}"
  mkdir -p "$GEMS/fetched"
  for package in "${missing[@]}"; do : >"$GEMS/fetched/$package"; done
}

# Those of the tests of test/compat that are part of every run.
need_compat_gems() {
  need_debian_gems trixie ruby-redis-client ruby-connection-pool ruby-webrick
}

# The first valgrind in which a thread that waits in io_uring_enter(2) lets the others run.
LEAST_VALGRIND=3.24

is_recent_valgrind() {
  local version
  version="$("$1" --version 2>/dev/null)" && printf '%s\n' "$LEAST_VALGRIND" "${version#valgrind-}" | sort -VC
}

# Sets VALGRIND to a valgrind that is recent enough; from Debian trixie, in a folder of ours, if the system's is not.
need_valgrind() {
  # memcheck wants the symbols of the dynamic linker.
  need_packages libc6-dbg
  VALGRIND="$(command -v valgrind || true)"
  if ! is_recent_valgrind "$VALGRIND"; then
    VALGRIND="$CACHE/valgrind/usr/bin/valgrind.bin"
    export VALGRIND_LIB="$CACHE/valgrind/usr/libexec/valgrind"
    if ! is_recent_valgrind "$VALGRIND"; then
      say "taking valgrind from Debian trixie"
      fetch_packages "$CACHE/valgrind" trixie valgrind
      is_recent_valgrind "$VALGRIND" || die "Debian's valgrind does not run here." "Install valgrind $LEAST_VALGRIND or newer."
    fi
  fi
  export VALGRIND
}
