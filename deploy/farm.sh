#!/usr/bin/env bash
# A whole farm in one process on this machine, to begin with: it keeps everything in the folder `my-farm` (or $FARM), and Prometheus
# looks at it where that is installed. Ctrl-C ends it; at the next start it goes on with what was begun.
set -euo pipefail
umask 077
here=$(cd "$(dirname "$0")" && pwd)
shoal=$(realpath "${PROGRAM:-$here/../target/release/shoal}")
mkdir -p "${FARM:-my-farm}" && cd "${FARM:-my-farm}"
export SHOAL_LISTEN=${SHOAL_LISTEN:-127.0.0.1:8420} SHOAL_ADMIN_LISTEN=${SHOAL_ADMIN_LISTEN:-127.0.0.1:9420}
prometheus=${PROMETHEUS_LISTEN:-127.0.0.1:9490}

[ -s token ] || od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >token
cat >tokens.toml <<END
[[tenants]]
name = "me"
token_sha256 = "$(sha256sum <token | cut -d' ' -f1)"
END

if command -v prometheus >/dev/null; then
  cat >prometheus.yaml <<END
global: {scrape_interval: 5s, evaluation_interval: 5s}
rule_files: ["$here/prometheus/rules.yaml"]
scrape_configs:
  - job_name: shoal-scheduler
    static_configs: [{targets: ["$SHOAL_ADMIN_LISTEN"]}]
END
  prometheus --config.file=prometheus.yaml --storage.tsdb.path=prometheus --web.listen-address="$prometheus" 2>prometheus.log &
  trap 'kill $!' EXIT
  echo "Prometheus: http://$prometheus/alerts"
else
  echo "Prometheus is not installed (the Debian package prometheus): nobody looks at the metrics."
fi
echo "The farm: http://$SHOAL_LISTEN/ (sign in with what is in $PWD/token)"
"$shoal" scheduler --broker local: --storage "file://$PWD/state/" --tokens tokens.toml --allow-file-urls --slots "${SHOAL_SLOTS:-$(nproc)}"
