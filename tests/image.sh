#!/usr/bin/env bash
# Makes the images of deploy/Dockerfile without Docker: every RUN, ENV and COPY of the stages `scheduler`, `worker` and `worker-gpu`,
# one after the other in a Debian 13 root, with the program that is given. The stage `build` is not run: its packages and `cargo build` are
# those of `make build`. Afterwards the program is started there as the images' user. Needs root, debootstrap and 2 GB.
# MIRROR names another mirror of Debian.
set -euo pipefail
cd "$(dirname "$0")/.."
program=$(realpath "${1:?image.sh PROGRAM}")

# Where /tmp is, no devices may be allowed.
folder=$(mktemp -d -p "${TMPDIR:-/var/tmp}")
root=$folder/root
trap 'umount "$root/proc" 2>/dev/null || true; rm -rf --one-file-system "$folder"' EXIT
debootstrap --variant=minbase trixie "$root" ${MIRROR:+"$MIRROR"} >"$folder/log" || { tail -n 20 "$folder/log" >&2; exit 1; }
mount -t proc proc "$root/proc"
# Names are looked up as here, and no service is started.
cp /etc/resolv.conf "$root/etc/resolv.conf"
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" && chmod 755 "$root/usr/sbin/policy-rc.d"

path=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
settings=(DEBIAN_FRONTEND=noninteractive) stage='' user=0 steps=0
within() { chroot --userspec="$user" "$root" env -i "$path" "${settings[@]}" "$@"; }

runs_as() { [ "$user" = 10001:10001 ] || { echo "the image $stage runs as $user" >&2; exit 1; }; }

# One instruction a line, without comments.
instructions=$(sed '/^[[:space:]]*#/d; /^[[:space:]]*$/d' deploy/Dockerfile | sed -e ':more' -e '/\\$/N; s/\\\n//; t more')
while read -r word rest <&3; do
  case $word in
    FROM)
      case $stage in scheduler | worker*) runs_as ;; esac
      # What stands on another stage has its user.
      case $rest in scheduler* | worker*) ;; *) user=0 ;; esac
      stage=${rest##* AS }
      ;;
    USER) user=$rest ;;
  esac
  case $stage in scheduler | worker | worker-gpu) ;; *) continue ;; esac
  case $word in
    FROM | USER | EXPOSE | HEALTHCHECK | ENTRYPOINT | CMD) continue ;;
    ENV) read -ra more <<<"$rest" && settings+=("${more[@]}") ;;
    COPY)
      [ "$rest" = '--from=build /usr/local/bin/shoal /usr/local/bin/shoal' ] || { echo "COPY $rest: not known here" >&2; exit 1; }
      install -m 755 "$program" "$root/usr/local/bin/shoal"
      ;;
    RUN)
      echo "$stage: RUN $rest"
      within sh -c "$rest" >"$folder/log" 2>&1 </dev/null || { tail -n 20 "$folder/log" >&2; exit 1; }
      ;;
    *) echo "$word: not known here" >&2 && exit 1 ;;
  esac
  steps=$((steps + 1))
done 3<<<"$instructions"
runs_as
echo "$stage: $steps steps done; as $user:"
within shoal --version
within shoal encoders
within sh -c '! touch /usr/lib/shoal/registry.bin 2>/dev/null' || { echo "the list of plugins can be written" >&2; exit 1; }
