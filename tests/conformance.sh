#!/usr/bin/env bash
# The storage contract and the farm's fault suites over real S3 servers: tests/conformance.sh [garage] [moto] [named]
#   garage  installs Garage 2.5.0 with cargo unless it is there (a quarter of an hour), and starts it
#   moto    installs moto into a virtual environment unless it is there, and starts it
#   named   the server that SHOAL_CONFORMANCE_S3, SHOAL_CONFORMANCE_BUCKET and AWS_* name
# SUITES names others than these: conformance farm_kills farm_faults farm_poison
set -euo pipefail
cd "$(dirname "$0")/.."

GARAGE_VERSION=2.5.0
TOOLS="$PWD/target/conformance"
WORK=""
SERVER=""

stop() {
  [ -z "$SERVER" ] || { kill "$SERVER" 2>/dev/null && wait "$SERVER" 2>/dev/null; SERVER=""; } || true
  [ -z "$WORK" ] || rm -rf "$WORK"
  WORK=""
}
trap stop EXIT

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# Waits until something listens on a port, at most 30 s.
await_port() {
  for _ in $(seq 300); do
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return
    kill -0 "$SERVER" 2>/dev/null || { cat "$WORK/log" >&2; echo "the server ended" >&2; return 1; }
    sleep 0.1
  done
  cat "$WORK/log" >&2
  echo "nothing listens on port $1" >&2
  return 1
}

suite() {
  local name
  for name in ${SUITES:-conformance farm_kills farm_faults farm_poison}; do
    echo "== $1: $name"
    cargo test --workspace --locked --features tests/conformance --test "$name" -- ${TEST_ARGS:-}
  done
}

start_garage() {
  local garage port
  garage="$(command -v garage || true)"
  if [ -z "$garage" ]; then
    garage="$TOOLS/bin/garage"
    [ -x "$garage" ] || cargo install garage --locked --version "$GARAGE_VERSION" --root "$TOOLS"
  fi
  port="$(free_port)"
  cat > "$WORK/garage.toml" <<TOML
metadata_dir = "$WORK/meta"
data_dir = "$WORK/data"
db_engine = "sqlite"
replication_factor = 1
rpc_bind_addr = "127.0.0.1:$(free_port)"
rpc_secret = "$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')"
[s3_api]
s3_region = "us-east-1"
api_bind_addr = "127.0.0.1:$port"
root_domain = ".s3.localhost"
[admin]
api_bind_addr = "127.0.0.1:$(free_port)"
TOML
  GARAGE_DEFAULT_ACCESS_KEY=conformance GARAGE_DEFAULT_SECRET_KEY=conformance-secret GARAGE_DEFAULT_BUCKET=farm \
    "$garage" -c "$WORK/garage.toml" server --single-node --default-access-key --default-bucket > "$WORK/log" 2>&1 &
  SERVER=$!
  await_port "$port"
  # It listens before its bucket is there.
  for _ in $(seq 100); do
    "$garage" -c "$WORK/garage.toml" bucket info farm > /dev/null 2>&1 && break
    sleep 0.1
  done
  export SHOAL_CONFORMANCE_S3="http://127.0.0.1:$port"
}

start_moto() {
  local port
  [ -x "$TOOLS/moto/bin/moto_server" ] || {
    python3 -m venv "$TOOLS/moto"
    "$TOOLS/moto/bin/pip" install --quiet 'moto[s3]==5.2.*' flask flask-cors
  }
  port="$(free_port)"
  "$TOOLS/moto/bin/moto_server" -H 127.0.0.1 -p "$port" > "$WORK/log" 2>&1 &
  SERVER=$!
  await_port "$port"
  # It takes any signature.
  python3 - "$port" <<'PYTHON'
import sys, urllib.request
headers = {"Authorization": "AWS4-HMAC-SHA256 Credential=conformance/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"}
urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{sys.argv[1]}/farm", method="PUT", headers=headers), timeout=10)
PYTHON
  export SHOAL_CONFORMANCE_S3="http://127.0.0.1:$port"
}

[ $# -gt 0 ] || set -- garage moto
for server in "$@"; do
  case "$server" in
    garage | moto)
      WORK="$(mktemp -d)"
      export AWS_ACCESS_KEY_ID=conformance AWS_SECRET_ACCESS_KEY=conformance-secret AWS_REGION=us-east-1 SHOAL_CONFORMANCE_BUCKET=farm
      "start_$server"
      suite "$server"
      stop
      ;;
    named) suite "$SHOAL_CONFORMANCE_S3" ;;
    *) echo "unknown server '$server': use garage, moto or named" >&2; exit 2 ;;
  esac
done
