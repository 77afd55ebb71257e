# Pure-Ruby gems from Debian's packages, in a folder of our own; sourced by the scripts beside it.

GEMS="$CACHE/gems"

# The GEM_PATH with which a Ruby finds its own gems and those taken from Debian.
gem_path() {
  local ruby="$1"
  printf '%s:%s' "$(GEM_PATH='' "$ruby" -e 'puts Gem.default_dir')" "$GEMS/usr/share/rubygems-integration/all"
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
