#!/usr/bin/env bash
# Makes what compose.yaml has for secrets, new and random, in deploy/secrets. What is there already stays as it is.
set -euo pipefail
cd "$(dirname "$0")"
umask 077
mkdir -p secrets
cd secrets

random() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }
# Containers read these as users of their own; on this machine the folder keeps others out.
keep() { [ -e "$1" ] && cat >/dev/null && return; cat >"$1.new" && chmod 444 "$1.new" && mv "$1.new" "$1"; }

# Those of one password are made together, or they do not fit.
if [ ! -e broker ]; then
  password=$(random 24)
  rm -f rabbitmq.conf
  keep rabbitmq.conf <<<"default_user = shoal
default_pass = $password"
  keep broker <<<"amqp://shoal:$password@rabbitmq:5672/%2f"
fi
if [ ! -e storage.env ]; then
  key=GK$(random 16) secret=$(random 32)
  rm -f garage.env
  keep garage.env <<<"GARAGE_RPC_SECRET=$(random 32)
GARAGE_DEFAULT_ACCESS_KEY=$key
GARAGE_DEFAULT_SECRET_KEY=$secret
GARAGE_DEFAULT_BUCKET=farm"
  keep storage.env <<<"AWS_ACCESS_KEY_ID=$key
AWS_SECRET_ACCESS_KEY=$secret"
fi
# The first tenant; its token is in a file of its own, for SHOAL_TOKEN_FILE.
if [ ! -e tokens.toml ]; then
  token=$(random 24)
  rm -f token
  keep token <<<"$token"
  keep tokens.toml <<<"[[tenants]]
name = \"first\"
token_sha256 = \"$(printf %s "$token" | sha256sum | cut -d' ' -f1)\""
fi
keep grafana-password <<<"$(random 16)"
