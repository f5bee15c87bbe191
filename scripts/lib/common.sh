# shellcheck shell=bash disable=SC2034 # what it sets is used by those that source it
# What every script here starts with: strict mode, the repository's root, how to speak, how to reach apt.
# Sourced, never run.

set -euo pipefail
export LC_ALL=C
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${VHOST_SWIFTD_CACHE:-$root/.cache}

# The script's name goes before each line, so that a log of several of them reads well.
say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
  say "$*"
  exit 1
}

# The comment at the head of the script, as its help.
usage() { sed -n '2,/^\(# shellcheck.*\|[^#].*\)$/ { s/^# shellcheck.*//; s/^# \{0,1\}//p }' "$0"; }

# Runs a command; shows what it printed only when it failed.
quietly() {
  local log status=0
  log=$(mktemp)
  "$@" </dev/null >"$log" 2>&1 || status=$?
  ((status == 0)) || cat "$log" >&2
  rm -f "$log"
  return "$status"
}

# apt-get with the rights it needs: apt_get COMMAND...
apt_get() {
  local as_root=()
  if ((EUID != 0)); then
    command -v sudo >/dev/null || die "needs root or sudo for: apt-get $*"
    as_root=(sudo)
  fi
  quietly "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@"
}
