#!/usr/bin/env bash
# Installs those of the named Debian packages that are missing; says nothing when none is. Needs root or sudo only then.
set -euo pipefail

missing=()
for package in "$@"; do
  status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] && continue
  # A program that is there by other means (node, say, from its makers) is as good.
  case $package in
    nodejs) command -v node >/dev/null && command -v npm >/dev/null && continue; missing+=(npm) ;;
    gcc) command -v cc >/dev/null && continue ;;
  esac
  missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

echo "installing: ${missing[*]}" >&2
root=()
[ "$(id -u)" = 0 ] || root=(sudo)
export DEBIAN_FRONTEND=noninteractive
"${root[@]}" apt-get update -q
"${root[@]}" apt-get install -q -y --no-install-recommends "${missing[@]}"
